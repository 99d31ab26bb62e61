"""Sentences of a text as character spans, so that whatever is quoted is verbatim."""

from __future__ import annotations

import re

_ABBREVIATIONS = "e.g i.e etc vs cf al fig eq sec no nos vol pp dr mr mrs ms prof inc ltd co st approx resp ca jr sr"
ABBREVIATIONS = frozenset(_ABBREVIATIONS.split())
# A sentence ends at . ! ? … with closing quotes or brackets, before white space; or at an empty line or list item.
END = re.compile(r"[.!?…]+[\"'”’)\]*_`]*(?=\s|$)|\n\s*\n|\n(?=\s*(?:[-*+•]|\d+[.)]|#{1,6}|>|\|)\s)")
LAST_WORD = re.compile(r"([\w.]+)$")


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence, without surrounding white space; list items and paragraphs end one too."""
    spans: list[tuple[int, int]] = []
    start = 0
    for match in END.finditer(text):
        if _is_abbreviation(text, match):
            continue
        _add(text, start, match.end(), spans)
        start = match.end()
    _add(text, start, len(text), spans)
    return spans


def sentences(text: str) -> list[str]:
    """The sentences of a text, verbatim."""
    return [text[start:end] for start, end in sentence_spans(text)]


def _is_abbreviation(text: str, end: re.Match[str]) -> bool:
    if not end[0].startswith(".") or end[0].startswith(".."):
        return False
    word = LAST_WORD.search(text, 0, end.start())
    if word is None:
        return False
    last = word[1].lower()
    initial = len(last) == 1 and last.isalpha() and word[1].isupper()
    following = text[end.end() :].lstrip(" ")[:1]
    numbered = last.isdigit() and not text[text.rfind("\n", 0, word.start()) + 1 : word.start()].strip()
    return last in ABBREVIATIONS or initial or numbered or following.islower()


def _add(text: str, start: int, end: int, spans: list[tuple[int, int]]) -> None:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if start < end:
        spans.append((start, end))
