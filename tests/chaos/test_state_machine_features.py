"""The feature store's documents, chunks and embeddings against a model in memory: Hypothesis chooses the steps, every
answer must be the model's, in whatever order and how often the events of a document arrive."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from postgres_fixture import postgres_server
from state_machines import CountedMachine, empty, in_memory, refuses, run

from infra.errors import InputError
from infra.identity import content_id, text_hash
from infra.settings import DatabaseSettings, Settings
from store.documents import Chunk
from store.opening import Store, open_store
from streams.events import DocumentUpserted

__all__ = ["postgres_server"]

START = datetime(2025, 3, 1, 12, tzinfo=UTC)
NAMES = ("a", "b", "ü/ 😀'; --")
PASSAGES = st.lists(st.sampled_from(["one", "two", "three", "a\x00b", "😀"]), max_size=4)
HEADINGS = st.sampled_from(["", "H > I"])
EMBEDDERS = ("mini@1", "other@2")
DIMENSIONS = 4


@dataclass(frozen=True)
class DocumentEvent:
    """An upsert, or without passages a deletion."""

    id: str
    minute: int
    name: str
    passages: tuple[str, ...] | None
    heading: str

    @property
    def order(self) -> tuple[int, str]:
        """The later of two wins."""
        return self.minute, self.id

    @property
    def document(self) -> DocumentUpserted:
        whole = "\n\n".join(self.passages or ())
        return DocumentUpserted(
            document_id=self.name,
            source=f"/{self.id}",
            title=self.id.title(),
            text=whole,
            content_hash=text_hash(whole),
            metadata={"year": self.minute, "tags": [self.id, None, 0.5]},
        )

    @property
    def chunks(self) -> list[Chunk]:
        return [
            Chunk(
                chunk_id=content_id("chunk", [self.name, text, self.passages[:position].count(text)]),
                document_id=self.name,
                position=position,
                heading=self.heading,
                text=text.replace("\0", "\ufffd"),
                tokens=len(text),
                text_hash=text_hash(text),
            )
            for position, text in enumerate(self.passages or ())
            if self.passages is not None
        ]


class DocumentMachine(CountedMachine):
    """Steps through two openings of one store, as two processes have them."""

    stores: ClassVar[Sequence[Store]]

    def __init__(self) -> None:
        super().__init__()
        self.events: list[DocumentEvent] = []
        self.latest: dict[str, DocumentEvent] = {}
        self.embeddings: dict[tuple[str, str], np.ndarray] = {}

    @initialize()
    def start(self) -> None:
        self.count("examples")
        empty(self.stores[0])

    @rule(
        opened=st.integers(0, 1),
        name=st.sampled_from(NAMES),
        minute=st.integers(0, 4),
        passages=PASSAGES.map(tuple),
        heading=HEADINGS,
    )
    def put(self, opened: int, name: str, minute: int, passages: tuple[str, ...], heading: str) -> None:
        self.count("put")
        self.happens(opened, DocumentEvent(f"e{len(self.events):03}", minute, name, passages, heading))

    @rule(opened=st.integers(0, 1), name=st.sampled_from(NAMES), minute=st.integers(0, 4))
    def delete(self, opened: int, name: str, minute: int) -> None:
        self.count("delete")
        self.happens(opened, DocumentEvent(f"e{len(self.events):03}", minute, name, None, ""))

    @rule(opened=st.integers(0, 1), data=st.data())
    def deliver_again(self, opened: int, data: st.DataObject) -> None:
        if self.events:
            self.count("deliver again")
            self.arrives(opened, data.draw(st.sampled_from(self.events)))

    @rule(name=st.sampled_from(NAMES))
    def put_what_contradicts(self, name: str) -> None:
        self.count("refused")
        event = DocumentEvent("bad", 9, name, ("one", "two"), "")
        first, second = event.chunks
        for wrong in (
            [first, first],
            [first, second.model_copy(update={"position": 0})],
            [first.model_copy(update={"document_id": "stranger"})],
        ):
            put = self.stores[0].documents.put
            refuses(InputError, lambda put=put, wrong=wrong: put(event.document, wrong, event_id="bad", time=START))

    @rule(opened=st.integers(0, 1), embedder=st.sampled_from(EMBEDDERS), texts=PASSAGES, data=st.data())
    def cache(self, opened: int, embedder: str, texts: list[str], data: st.DataObject) -> None:
        self.count("cache")
        vectors = {
            text_hash(text): np.full(DIMENSIONS, data.draw(st.integers(-5, 5)), np.float32) for text in set(texts)
        }
        self.stores[opened].documents.cache_embeddings(embedder, vectors)
        for name, vector in vectors.items():
            self.embeddings.setdefault((embedder, name), vector)

    @invariant()
    def embeddings_are_the_models(self) -> None:
        names = {name for _, name in self.embeddings} | {text_hash(text) for text in ("one", "nobody")}
        for embedder in EMBEDDERS:
            wanted = {name: vector for (which, name), vector in self.embeddings.items() if which == embedder}
            found = self.stores[1].documents.cached_embeddings(embedder, sorted(names))
            assert set(found) == set(wanted)
            assert all(np.array_equal(found[name], wanted[name]) for name in wanted)

    @invariant()
    def documents_are_the_models(self) -> None:
        documents = self.stores[0].documents
        alive = {name: event for name, event in sorted(self.latest.items()) if event.passages is not None}
        dead = {name: event for name, event in self.latest.items() if event.passages is None}
        rows = documents.list()
        assert [row.document_id for row in rows] == list(alive)
        for row, event in zip(rows, alive.values(), strict=True):
            document = event.document
            assert (row.source, row.title, row.metadata) == (document.source, document.title, document.metadata)
            assert (row.content_hash, row.chunks) == (document.content_hash, len(event.chunks))
            assert row.updated_at == at(event.minute)
            assert documents.chunks_of(row.document_id) == event.chunks
            assert documents.get(row.document_id) == row
        assert documents.tombstones() == {name: at(event.minute) for name, event in dead.items()}
        assert documents.hashes() == {name: event.document.content_hash for name, event in alive.items()}
        assert set(documents.source_of(NAMES)) == set(alive)
        chunks = [chunk for event in alive.values() for chunk in event.chunks]
        everything = list(documents.all_chunks())
        assert sorted(everything, key=lambda each: (each.document_id, each.position)) == chunks
        assert documents.chunks([chunk.chunk_id for chunk in chunks]) == {chunk.chunk_id: chunk for chunk in chunks}
        assert documents.counts() == {
            "documents": len(alive),
            "tombstones": len(dead),
            "chunks": len(chunks),
            "embeddings": len(self.embeddings),
        }

    def happens(self, opened: int, event: DocumentEvent) -> None:
        self.events.append(event)
        self.arrives(opened, event)

    def arrives(self, opened: int, event: DocumentEvent) -> None:
        """Deliver an event, and compare what the store says it changed."""
        before = self.latest.get(event.name)
        applies = before is None or event.order > before.order
        documents = self.stores[opened].documents
        held = before.chunks if before else []
        if event.passages is None:
            gone = documents.delete(event.name, event_id=event.id, time=at(event.minute))
            assert gone == ([chunk.chunk_id for chunk in held] if applies else [])
        else:
            result = documents.put(event.document, event.chunks, event_id=event.id, time=at(event.minute))
            kept = {chunk.chunk_id for chunk in event.chunks}
            assert result.applied == applies
            assert result.added == ([chunk for chunk in event.chunks if chunk not in held] if applies else [])
            assert result.removed == ([each.chunk_id for each in held if each.chunk_id not in kept] if applies else [])
        if applies:
            self.latest[event.name] = event
        if applies and event.passages is None:
            self.forget(held)

    def forget(self, gone: Sequence[Chunk]) -> None:
        used = {chunk.text_hash for event in self.latest.values() for chunk in event.chunks}
        lost = {chunk.text_hash for chunk in gone} - used
        self.embeddings = {key: vector for key, vector in self.embeddings.items() if key[1] not in lost}


def at(minute: int) -> datetime:
    """A moment; odd ones in another time zone."""
    moment = START + timedelta(minutes=minute)
    return moment.astimezone(timezone(timedelta(hours=-7))) if minute % 2 else moment


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_the_feature_store_does_what_the_model_does(
    database: str, scale: Callable[[int, int], int], request: pytest.FixtureRequest
):
    url = "" if database == "sqlite" else request.getfixturevalue("postgres_server").new_database()
    with tempfile.TemporaryDirectory(prefix="quill-features-", dir=in_memory()) as home:
        settings = Settings(home=Path(home), database=DatabaseSettings(url=url))
        DocumentMachine.stores = [open_store(settings), open_store(settings)]
        counts = run(DocumentMachine, scale(60, 2000) if database == "sqlite" else scale(10, 200), scale(40, 60))
        for store in DocumentMachine.stores:
            store.close()
    assert all(counts[step] for step in ("put", "delete", "deliver again", "cache", "refused"))
