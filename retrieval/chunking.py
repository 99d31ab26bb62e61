"""Structure-aware chunking: sections by heading, code and tables whole, paragraphs packed, long ones by sentence.

A chunk never crosses a heading unless the section before it is too short to stand alone. Its identity is the
document and the text that is embedded, so an edit in the middle keeps the ids of all other chunks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

from pydantic import Field

from infra.identity import Value, content_id, text_hash
from retrieval.cleaning import FENCE, SETEXT, clean, is_prose
from retrieval.sentences import sentence_spans
from store.documents import Chunk
from streams.events import DocumentUpserted

ATX = re.compile(r"^(#{1,6})\s+(.*?)\s*#*\s*$")
# Sections that tell a reader nothing about the subject: release histories, thanks, legal text.
LEFT_OUT = re.compile(
    r"^(?:change ?logs?|changes|release (?:notes|history|log)|releases|history|news|contributors?|sponsors?|backers|"
    r"authors?|credits|acknowledge?ments?|licen[cs]e|licensing|copyright|citation|citing|badges|table of contents|"
    r"contents|v?\d+(?:\.\d+)+.*|\W*\[?v?\d+\.\d+.*)\W*$",
    re.IGNORECASE,
)


class ChunkSettings(Value):
    """How documents are cut. Part of the identity of an index build."""

    target_tokens: int = Field(180, ge=20, description="Paragraphs are packed up to this many embedder tokens.")
    merge_below: int = Field(60, ge=0, description="A section shorter than this takes in the section after it.")
    min_words: int = Field(12, ge=1, description="Chunks with fewer words are dropped, unless a document has no other.")
    same_words: float = Field(0.9, ge=0, le=1, description="Jaccard similarity of words that makes a repetition.")
    version: int = Field(2, description="Raised when cleaning or chunking changes what it produces.")


class Tokenizer(Protocol):
    """What chunking needs of an embedder."""

    @property
    def max_tokens(self) -> int: ...

    def token_spans(self, text: str) -> list[tuple[int, int]]: ...


class Block(NamedTuple):
    """A paragraph, list, table or code block with the headings above it."""

    path: tuple[str, ...]
    text: str
    kind: str  # "prose", "code" or "table"


def embedding_text(title: str, heading: str, text: str) -> str:
    """What the embedder and BM25 read of a chunk: title, heading path, text, a line each."""
    return "\n".join(part for part in (title, heading, text) if part)


def chunk_document(document: DocumentUpserted, tokenizer: Tokenizer, settings: ChunkSettings) -> list[Chunk]:
    """The chunks of a document in reading order; empty when it holds no word."""
    count = _Counter(tokenizer)
    cutter = _Cutter(count, settings, tokenizer.max_tokens, document.title)
    cut = list(cutter.cut(blocks(clean(document.text), document.title)))
    # What is no prose is left out beside prose; a document of a few words, such as a title, is still a document.
    prose = [(path, text) for path, text in cut if _worth_keeping(text, settings.min_words)]
    prose = prose or [(path, text) for path, text in cut if _worth_keeping(text, 1)]
    chunks: list[Chunk] = []
    kept: list[set[str]] = []
    for path, text in prose:
        words = set(re.findall(r"\w+", text.lower()))
        if any(_same(words, other, settings.same_words) for other in kept):
            continue
        kept.append(words)
        heading = " > ".join(path)
        embedded = text_hash(embedding_text(document.title, heading, text))
        chunks.append(
            Chunk(
                chunk_id=content_id("chunk", [document.document_id, embedded]),
                document_id=document.document_id,
                position=len(chunks),
                heading=heading,
                text=text,
                tokens=count(text),
                text_hash=embedded,
            )
        )
    return chunks


def blocks(text: str, title: str = "") -> Iterator[Block]:
    """The blocks of Markdown with their heading paths; a first heading that repeats the title is left out."""
    path: list[tuple[int, str]] = []
    for kind, body in _raw_blocks(text.splitlines()):
        match = ATX.match(body) if kind == "heading" else None
        if match is None:
            if not any(LEFT_OUT.match(name) for _, name in path):
                yield Block(tuple(name for _, name in path), body, kind)
            continue
        level = len(match[1])
        path = [(above, name) for above, name in path if above < level]
        if match[2] and _letters(match[2]) not in (_letters(title), _letters(title.partition(":")[0])):
            path.append((level, match[2]))


class _Counter:
    """Token counts, each text tokenized once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        if text not in self._known:
            self._known[text] = len(self._tokenizer.token_spans(text))
        return self._known[text]

    def windows(self, text: str, limit: int) -> list[str]:
        """The text cut every `limit` tokens, at token borders."""
        spans = self._tokenizer.token_spans(text)
        starts = [0] + [spans[at][0] for at in range(limit, len(spans), limit)] + [len(text)]
        return [text[start:end].strip() for start, end in pairwise(starts)]


class _Cutter:
    """Packs blocks into chunk texts."""

    def __init__(self, count: _Counter, settings: ChunkSettings, max_tokens: int, title: str) -> None:
        self._count = count
        self._settings = settings
        self._max_tokens = max_tokens
        self._title = title

    def cut(self, found: Iterator[Block]) -> Iterator[tuple[tuple[str, ...], str]]:
        """(heading path, text) of each chunk, in order."""
        path: tuple[str, ...] = ()
        parts: list[str] = []
        size = 0
        for block in found:
            for piece in self._pieces(block):
                lead = _bridge(path, block.path) if parts and block.path != path else ""
                tokens = self._count(piece) + (self._count(lead) if lead else 0)
                if parts and not self._joins(size, tokens, block, path):
                    yield path, "\n\n".join(parts)
                    parts, size, lead = [], 0, ""
                    tokens = self._count(piece)
                if not parts:
                    path = block.path
                if lead and lead not in parts:
                    parts.append(lead)
                parts.append(piece)
                size += tokens
        if parts:
            yield path, "\n\n".join(parts)

    def _joins(self, size: int, tokens: int, block: Block, path: tuple[str, ...]) -> bool:
        # Code and tables mean little without the words before them, so they may fill the model's whole window.
        limit = self._room(path)
        if block.kind == "prose":
            limit = min(self._settings.target_tokens, limit)
        return size + tokens <= limit and (block.path == path or size < self._settings.merge_below)

    def _room(self, path: tuple[str, ...]) -> int:
        # Title and heading path are embedded with the text, and the model adds [CLS] and [SEP].
        used = self._count(embedding_text(self._title, " > ".join(path), "")) + 2
        return max(32, self._max_tokens - used)

    def _pieces(self, block: Block) -> list[str]:
        """The block whole when it fits the model, else cut at rows, lines, sentences or, at last, tokens."""
        room = self._room(block.path)
        prose = block.kind == "prose"
        if self._count(block.text) <= (min(room, self._settings.target_tokens) if prose else room):
            return [block.text]
        if prose:
            return self._paragraph(block.text, min(room, self._settings.target_tokens))
        lines = block.text.splitlines()
        if block.kind == "table":
            head = "\n".join(lines[:2]) + "\n"
            if self._count(head) > room // 3:  # a header that long is text of its own, not repeated
                return self._pack(lines, "\n", room)
            return [head + rows for rows in self._pack(lines[2:], "\n", room - self._count(head))]
        inside = lines[1:-1] if len(lines) > 1 and FENCE.match(lines[-1]) else lines[1:]
        return [f"{lines[0]}\n{code}\n```" for code in self._pack(inside, "\n", room - 8)]

    def _paragraph(self, text: str, limit: int) -> list[str]:
        """A long paragraph cut between sentences; what lies between two sentences of a piece stays as it was."""
        pieces: list[str] = []
        first = last = 0
        for start, end in sentence_spans(text):
            if last and self._count(text[first:end]) > limit:
                pieces.append(text[first:last])
                last = 0
            first = first if last else start
            last = end
        return [part for piece in [*pieces, text[first:last]] for part in self._fitting(piece, limit)]

    def _pack(self, units: Sequence[str], joint: str, limit: int) -> list[str]:
        small = [piece for unit in units for piece in self._fitting(unit, limit)]
        return list(_packed(small, joint, limit, self._count))

    def _fitting(self, unit: str, limit: int) -> list[str]:
        return [unit] if self._count(unit) <= limit else self._count.windows(unit, limit)


def _packed(units: Sequence[str], joint: str, limit: int, count: Callable[[str], int]) -> Iterator[str]:
    group: list[str] = []
    size = 0
    for unit in units:
        tokens = count(unit)
        if group and size + tokens > limit:
            yield joint.join(group)
            group, size = [], 0
        group.append(unit)
        size += tokens
    if group:
        yield joint.join(group)


def _raw_blocks(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(kind, text) of each block; kind is heading, code, table or prose."""
    at = 0
    while at < len(lines):
        line = lines[at]
        end = at + 1
        if FENCE.match(line):
            end = _fence_end(lines, at)
            yield "code", "\n".join(lines[at:end])
        elif ATX.match(line):
            yield "heading", line
        elif line.strip():
            kind = "table" if line.lstrip().startswith("|") else "prose"
            end = _block_end(lines, at, table=kind == "table")
            if kind == "prose" and end < len(lines) and end == at + 1 and SETEXT.match(lines[end]):
                yield "heading", ("# " if lines[end].startswith("=") else "## ") + line.strip()
                end += 1
            else:
                yield kind, "\n".join(lines[at:end])
        at = end


def _fence_end(lines: Sequence[str], at: int) -> int:
    mark = FENCE.match(lines[at])
    fence = mark[1] if mark else "```"
    for end in range(at + 1, len(lines)):
        if lines[end].strip().startswith(fence):
            return end + 1
    return len(lines)


def _block_end(lines: Sequence[str], at: int, *, table: bool) -> int:
    end = at + 1
    while end < len(lines):
        line = lines[end]
        if not line.strip() or FENCE.match(line) or ATX.match(line) or SETEXT.match(line):
            break
        if line.lstrip().startswith("|") != table:
            break
        end += 1
    return end


def _bridge(path: tuple[str, ...], following: tuple[str, ...]) -> str:
    """The headings that come new when a short section takes in the next one, as one line."""
    common = 0
    while common < min(len(path), len(following)) and path[common] == following[common]:
        common += 1
    return ": ".join(following[common:])


def _worth_keeping(text: str, min_words: int) -> bool:
    prose = re.sub(r"^(```|~~~).*?(?:^\1|\Z)", "", text, flags=re.DOTALL | re.MULTILINE)
    return len(prose.split()) >= min_words and is_prose(prose)


def _same(words: set[str], other: set[str], limit: float) -> bool:
    together = len(words | other)
    return together > 0 and len(words & other) / together >= limit


def _letters(text: str) -> str:
    return re.sub(r"\W+", "", text).lower()
