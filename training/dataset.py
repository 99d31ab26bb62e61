"""Instruct datasets from the documents themselves: the passage is the answer, the instruction is derived from what
the document says about it. De-duplicated, split by source document, checked for contamination.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from infra.artifacts import Artifacts, Manifest
from infra.errors import InputError
from infra.identity import Value, content_id, text_hash
from infra.llm.chat import ChatModel
from training.duplicates import SeenTexts
from training.instructions import written_instruction
from training.passages import MAX_WORDS, MIN_WORDS, Unfit, answer_of
from training.topics import Topic, instructions, topic_of

if TYPE_CHECKING:
    from store.documents import Chunk, DocumentRow
    from store.opening import Store

LAYOUT = 1
"""Raised when derivation changes, so that older datasets are made again."""
HELDOUT_SHARE = 0.15
PER_DOCUMENT = 12
"""A long README may not outvote the rest: 12 rows are about what an article of 1,500 words gives."""

OnProgress = Callable[[int, int, str], None]
"""Rows done, rows in all, note."""


class Row(Value):
    """One training example."""

    instruction: str = Field(description="What is asked.")
    answer: str = Field(description="The passage as plain text.")
    document_id: str = Field(description="Document the passage is from; the unit of the split.")
    chunk_id: str = Field(description="The passage.")


class Candidate(Value):
    """A passage that can be an answer, before the instruction is chosen."""

    chunk_id: str = Field(description="The passage.")
    document_id: str = Field(description="Its document.")
    answer: str = Field(description="The passage as plain text.")
    topic: Topic = Field(description="What it is about.")
    heldout: bool = Field(description="Its document is held out.")


def build(
    store: Store,
    *,
    writer: ChatModel | None = None,
    max_rows: int = 400,
    seed: int = 7,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """The instruct dataset of the documents as they are now (kind "dataset"); the stored one when nothing changed.

    `writer` writes the instructions where it is given; what it returns is checked, and a template takes its place
    when it is no instruction. Raises `InputError` when no passage is usable or everything would be on one side of
    the split, and `Unavailable` when the writer cannot be reached.
    """
    chunks = list(store.documents.all_chunks())
    documents = store.documents.source_of(sorted({chunk.document_id for chunk in chunks}))
    known = [
        [chunk.chunk_id, text_hash(chunk.text), chunk.heading, documents[chunk.document_id].title]
        for chunk in chunks
        if chunk.document_id in documents
    ]
    inputs: dict[str, Any] = {
        "chunks": content_id("chunks", known),
        "writer": writer.model if writer else "",
        "max_rows": max_rows,
        "seed": seed,
        "per_document": PER_DOCUMENT,
        "heldout_share": HELDOUT_SHARE,
        "words": [MIN_WORDS, MAX_WORDS],
        "layout": LAYOUT,
    }

    def fill(directory: Path) -> dict[str, Any]:
        rows, summary = derive(chunks, documents, writer=writer, max_rows=max_rows, seed=seed, on_progress=on_progress)
        for name, side in rows.items():
            lines = "".join(json.dumps(row.model_dump(), ensure_ascii=False) + "\n" for row in side)
            (directory / f"{name}.jsonl").write_text(lines)
        return summary

    return store.artifacts.build("dataset", content_id("dataset", inputs), inputs, fill)


def derive(
    chunks: Sequence[Chunk],
    documents: Mapping[str, DocumentRow],
    *,
    writer: ChatModel | None = None,
    max_rows: int = 400,
    seed: int = 7,
    on_progress: OnProgress | None = None,
) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """Rows of "train" and "heldout", and the summary: rows, heldout, documents, dropped by reason."""
    dropped: Counter[str] = Counter()
    held = heldout_documents(sorted({chunk.document_id for chunk in chunks}), seed)
    found = [
        candidate
        for chunk in chunks
        if (candidate := _candidate(chunk, documents.get(chunk.document_id), chunk.document_id in held, dropped))
    ]
    chosen = _chosen(_distinct(found, dropped), max_rows, seed, dropped)
    rows: dict[str, list[Row]] = {"train": [], "heldout": []}
    asked = SeenTexts(shingle=2)
    written = 0
    for done, candidate in enumerate(chosen, start=1):
        own = written_instruction(writer, candidate.answer, candidate.topic.text) if writer else ""
        instruction = _unused([own] * bool(own) + instructions(candidate.topic, candidate.chunk_id), asked)
        if instruction:
            written += instruction == own
            rows["heldout" if candidate.heldout else "train"].append(_row(candidate, instruction))
        else:
            dropped["duplicate instruction"] += 1
        if on_progress is not None:
            on_progress(done, len(chosen), "rows")
    _check_sides(rows)
    return rows, _summary(rows, dropped, len(chunks), written)


def heldout_documents(document_ids: Sequence[str], seed: int) -> set[str]:
    """About 15 % of the documents, by hash: a document's side does not depend on the others. When the hash leaves one
    side empty, the document with the lowest (highest) hash changes sides."""
    shares = {identity: int(content_id("split", [seed, identity])[7:15], 16) / 2**32 for identity in document_ids}
    held = {identity for identity, share in shares.items() if share < HELDOUT_SHARE}
    ordered = sorted(shares, key=lambda identity: (shares[identity], identity))
    if not held:
        held = set(ordered[:1])
    return held - {ordered[-1]} if len(held) == len(ordered) and len(ordered) > 1 else held


def documents_on_both_sides(artifacts: Artifacts, dataset_id: str) -> set[str]:
    """Documents with rows in train and in held-out of a stored dataset; empty is right. Raises `NotFound`."""
    train, heldout = (
        {row.document_id for row in read_rows(artifacts, dataset_id, side)} for side in ("train", "heldout")
    )
    return train & heldout


def heldout_instructions(artifacts: Artifacts, dataset_id: str, *, limit: int) -> list[str]:
    """Up to `limit` instructions of held-out rows, of different documents as far as there are. Raises `NotFound`."""
    rows = read_rows(artifacts, dataset_id, "heldout")
    seen: Counter[str] = Counter()
    ranked: list[tuple[int, int, str]] = []
    for place, row in enumerate(rows):
        ranked.append((seen[row.document_id], place, row.instruction))
        seen[row.document_id] += 1
    return [instruction for _, _, instruction in sorted(ranked)[:limit]]


def instruction_texts(artifacts: Artifacts, dataset_id: str) -> list[str]:
    """Every instruction of a dataset, train rows first. Raises `NotFound` and `CorruptArtifact`."""
    return [row.instruction for side in ("train", "heldout") for row in read_rows(artifacts, dataset_id, side)]


def read_rows(artifacts: Artifacts, dataset_id: str, side: str) -> list[Row]:
    """The rows of one side, "train" or "heldout". Raises `NotFound` and `CorruptArtifact`."""
    directory = artifacts.verify("dataset", dataset_id)
    lines = (directory / f"{side}.jsonl").read_text().splitlines()
    return [Row.model_validate_json(line) for line in lines]


def _candidate(chunk: Chunk, document: DocumentRow | None, heldout: bool, dropped: Counter[str]) -> Candidate | None:
    if document is None:
        return None
    tags = [str(tag) for tag in document.metadata.get("tags") or []]
    try:
        answer = answer_of(chunk.text)
        topic = topic_of(document.title, chunk.heading, tags, document.source, chunk.text)
        if topic is None:
            raise Unfit("no topic")
    except Unfit as reason:
        dropped[str(reason)] += 1
        return None
    return Candidate(
        chunk_id=chunk.chunk_id, document_id=chunk.document_id, answer=answer, topic=topic, heldout=heldout
    )


def _distinct(found: Sequence[Candidate], dropped: Counter[str]) -> list[Candidate]:
    """Without near-duplicate answers. Training rows go first, so a held-out answer that nearly equals one of them
    is the one to go ("contaminated")."""
    kept: list[Candidate] = []
    seen = SeenTexts()
    trained: set[str] = set()
    for candidate in sorted(found, key=lambda one: one.heldout):
        like = seen.like(candidate.answer)
        if like:
            dropped["contaminated" if candidate.heldout and like in trained else "duplicate answer"] += 1
            continue
        key = seen.add(candidate.answer)
        kept.append(candidate)
        if not candidate.heldout:
            trained.add(key)
    return kept


def _chosen(found: Sequence[Candidate], max_rows: int, seed: int, dropped: Counter[str]) -> list[Candidate]:
    """At most `max_rows`: every document's first row, then every second, …; no document beyond `PER_DOCUMENT`."""
    places = {one.chunk_id: content_id("order", [seed, one.chunk_id]) for one in found}
    ranked: list[tuple[int, str, Candidate]] = []
    seen: Counter[str] = Counter()
    for one in sorted(found, key=lambda one: places[one.chunk_id]):
        ranked.append((seen[one.document_id], places[one.chunk_id], one))
        seen[one.document_id] += 1
    within = [(rank, place, one) for rank, place, one in ranked if rank < PER_DOCUMENT]
    chosen = sorted(within, key=lambda entry: entry[:2])[:max_rows]
    dropped["over the document's share"] += len(ranked) - len(within)
    dropped["over the row limit"] += len(within) - len(chosen)
    return [one for _, _, one in chosen]


def _unused(phrasings: Sequence[str], asked: SeenTexts) -> str:
    """The first phrasing that nobody used yet, now used; '' when all are."""
    for phrasing in phrasings:
        if not asked.like(phrasing):
            asked.add(phrasing)
            return phrasing
    return ""


def _row(candidate: Candidate, instruction: str) -> Row:
    return Row(
        instruction=instruction,
        answer=candidate.answer,
        document_id=candidate.document_id,
        chunk_id=candidate.chunk_id,
    )


def _check_sides(rows: Mapping[str, Sequence[Row]]) -> None:
    sides = {name: {row.document_id for row in side} for name, side in rows.items()}
    if not all(sides.values()):
        raise InputError(
            "too few usable passages for a dataset",
            seen=", ".join(f"{len(rows[name])} {name} rows" for name in rows),
            rule=f"prose of {MIN_WORDS} to {MAX_WORDS} words under a heading, from at least two documents",
            fix="ingest more documents",
        )
    if sides["train"] & sides["heldout"]:
        raise AssertionError("a document stands on both sides of the split")


def _summary(
    rows: Mapping[str, Sequence[Row]], dropped: Mapping[str, int], chunks: int, written: int
) -> dict[str, Any]:
    return {
        "rows": len(rows["train"]),
        "heldout": len(rows["heldout"]),
        "documents": len({row.document_id for side in rows.values() for row in side}),
        "heldout_documents": len({row.document_id for row in rows["heldout"]}),
        "chunks": chunks,
        "dropped": {reason: count for reason, count in sorted(dropped.items()) if count},
        "instructions_by_llm": written,
    }
