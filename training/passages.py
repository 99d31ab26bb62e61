"""Passages as answers: Markdown markup removed, whole sentences only, and the reasons why a passage is no answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it.token import Token

MIN_WORDS = 40
MAX_WORDS = 190
"""190 English words are about 250 tokens, which with the chat prompt fit a packed sequence of 320."""
LIST_SHARE = 0.4
LINKS_PER_WORD = 1 / 25

_MANNERS = {
    "links": re.compile(r"\b(found|available|described|read more|see|click) here\b", re.I),
    "first person": re.compile(r"\b(I|I'm|I've|my)\b"),
    "leans on what came before": re.compile(r"^(This|That|These|Those|It|They|Also|However|Then|But|And|Both|Such)\b"),
    "markup": re.compile(r"\$[^$\n]+\$|\\[a-z]+|[{}<>]{2}|</"),
    "release notes": re.compile(r"\b\d+\.\d+\.\d+\b.*\b\d+\.\d+\.\d+\b", re.S),
}
_STARTS = re.compile(r"[\"“'(]?[A-Z0-9]")
_SENTENCE_START = re.compile(r"(?<=[.!?])[\"”')]?\s+(?=[\"“(]?[A-Z0-9])")
_ENDS = (".", "!", "?", '."', ".”", ".)", '?"', '!"')


class Unfit(Exception):
    """A passage that cannot be an answer; the text is the reason, a key of the manifest's counts."""


def answer_of(text: str) -> str:
    """The passage as plain text, a paragraph per blank line and list items behind "- ". Raises `Unfit`."""
    tokens = _parse(text)
    words = max(1, len(text.split()))
    if any(token.type in ("fence", "code_block") for token in tokens):
        raise Unfit("code")  # without its code the prose around it points at nothing
    if any(token.type in ("table_open", "html_block") for token in tokens):
        raise Unfit("markup")
    if _links(tokens) > words * LINKS_PER_WORD:
        raise Unfit("links")
    paragraphs, items = _prose(tokens)
    listed = sum(len(item.split()) for item in items)
    if listed > LIST_SHARE * words:
        raise Unfit("list")
    answer = _whole("\n\n".join(paragraphs))
    length = len(answer.split())
    if length < MIN_WORDS:
        raise Unfit("short")
    if length > MAX_WORDS:
        raise Unfit("long")
    for reason, pattern in _MANNERS.items():
        if pattern.search(answer):
            raise Unfit(reason)
    return answer


def _parse(text: str) -> list[Token]:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable("table").parse(text)


def _links(tokens: Sequence[Token]) -> int:
    inside = [child for token in tokens for child in token.children or []]
    bare = sum(len(re.findall(r"https?://", child.content)) for child in inside if child.type == "text")
    return bare + sum(child.type in ("link_open", "image") for child in inside)


def _prose(tokens: Sequence[Token]) -> tuple[list[str], list[str]]:
    """Paragraphs in order, list items among them, and the list items alone. Headings, code and quotes' marks go."""
    paragraphs: list[str] = []
    items: list[str] = []
    depth = 0
    heading = False
    for token in tokens:
        depth += {"list_item_open": 1, "list_item_close": -1}.get(token.type, 0)
        heading = token.type == "heading_open" or (heading and token.type != "heading_close")
        if token.type != "inline" or heading:
            continue
        text = _inline(token.children or [])
        if text and depth:
            items.append(text)
            if paragraphs and paragraphs[-1].startswith("- "):
                paragraphs[-1] += f"\n- {text}"
                continue
            text = f"- {text}"
        if text:
            paragraphs.append(text)
    return paragraphs, items


def _inline(children: Sequence[Token]) -> str:
    """Text and code of a paragraph without marks, images and HTML tags; breaks become spaces."""
    parts = {"text": None, "code_inline": None, "softbreak": " ", "hardbreak": " "}
    words = [child.content if parts[child.type] is None else " " for child in children if child.type in parts]
    return re.sub(r"\s+", " ", "".join(words)).strip()


def _whole(text: str) -> str:
    """The text from its first sentence that begins to its last that ends: chunks may begin or end inside one.

    A lead-in to code or a list that is no longer there ("as follows:") goes too.
    """
    if not _STARTS.match(text):
        begin = _SENTENCE_START.search(text)
        text = text[begin.end() :] if begin else ""
    paragraphs = [_closed(paragraph) for paragraph in text.split("\n\n")]
    for number, paragraph in enumerate(paragraphs[:-1]):
        if not paragraph and paragraphs[number + 1].startswith("- "):
            paragraphs[number] = text.split("\n\n")[number]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph).strip()


def _closed(paragraph: str) -> str:
    """The paragraph up to the end of its last finished sentence; lists stay as they are."""
    if paragraph.startswith("- ") or paragraph.endswith(_ENDS):
        return paragraph
    sentences = _SENTENCE_START.split(paragraph)
    return " ".join(sentences[:-1])
