"""Retrieved chunks as numbered sources for a prompt, within a token budget, unable to leave their place in it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from pydantic import Field

from infra.identity import Value
from retrieval.cleaning import code_and_rest
from retrieval.sentences import sentence_spans
from streams.protocols import RetrievedChunk

BUDGET = 400
SMALLEST_PART = 40
SHARES = 4
OPEN, CLOSE = "<<<SOURCES", "SOURCES>>>"
CHARACTERS_PER_TOKEN = 4.0
ANNOUNCEMENT = re.compile(r"[^.!?\n]*:$")

# What could end the sources, open a chat turn, or pass for the number of another source.
_FORGED = (
    (re.compile(r"<{2,}"), "‹‹"),
    (re.compile(r">{2,}"), "››"),
    (re.compile(r"<\s*(/?)\s*\|"), r"‹\1|"),
    (re.compile(r"\|\s*>"), "|›"),
    (
        re.compile(r"<(/?)(s|im_start|im_end|system|user|assistant|source|sources)\b([^<>]*)>", re.IGNORECASE),
        r"‹\1\2\3›",
    ),
    (re.compile(r"^(\s*)\[(\d+)\]", re.MULTILINE), r"\1(\2)"),
)


class Grounding(Value):
    """What goes into the prompt."""

    chunks: tuple[RetrievedChunk, ...] = Field(description="The chunks that fit, best first; number n is chunks[n-1].")
    text: str = Field(description="The numbered sources between delimiters.")
    tokens: int = Field(description="Estimated tokens of the text.")


def ground(chunks: Sequence[RetrievedChunk], budget: int = BUDGET) -> Grounding:
    """Number the chunks and pack them into `budget` tokens, each cut after a sentence to its share of what is left.

    The first `SHARES` chunks share the budget evenly, what one does not need goes to the next: four angles on a
    question make a better post than two long ones. The best chunk is always there.
    """
    entries: list[str] = []
    left = budget
    for number, chunk in enumerate(chunks, start=1):
        label = f"[{number}] {neutral(_one_line(chunk.title))}"
        label += f" — {neutral(_one_line(chunk.heading))}: " if chunk.heading else ": "
        share = left // max(1, min(SHARES, len(chunks)) - len(entries))
        body = _fitting(neutral(_prose(chunk.text)), share - tokens(label), whole=number == 1)
        if not body:
            break
        entries.append(label + body)
        left -= tokens(entries[-1])
        if left < SMALLEST_PART:
            break
    text = "\n\n".join([OPEN, *entries, CLOSE])
    return Grounding(chunks=tuple(chunks[: len(entries)]), text=text, tokens=tokens(text))


def tokens(text: str) -> int:
    """Estimated tokens of a text."""
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def neutral(text: str) -> str:
    """The text with look-alikes in place of whatever could be taken for a delimiter, chat turn or source number."""
    for pattern, replacement in _FORGED:
        text = pattern.sub(replacement, text)
    return text


def _fitting(text: str, room: int, *, whole: bool) -> str:
    """The text, or its first sentences that fit; '' when too little would be left (at least one if `whole`)."""
    if tokens(text) <= room:
        return text
    end = 0
    for _, stop in sentence_spans(text):
        if tokens(text[:stop]) > room and (end or not whole):
            break
        end = stop
    return text[:end] if whole or tokens(text[:end]) >= SMALLEST_PART else ""


def _prose(text: str) -> str:
    """The text without code blocks and the lines that announce them, which would take the place of words that
    explain; code alone stays."""
    parts = list(code_and_rest(text))
    kept: list[str] = []
    for place, (is_code, part) in enumerate(parts):
        announces = place + 1 < len(parts) and parts[place + 1][0]
        if not is_code:
            kept.append(ANNOUNCEMENT.sub("", part.strip()).strip() if announces else part.strip())
    return "\n\n".join(part for part in kept if part) or text


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
