"""Documents, chunks and cached embeddings: the same behaviour on SQLite and PostgreSQL."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from infra.errors import InputError
from infra.identity import content_id, text_hash
from store.documents import Chunk, PutResult
from store.opening import Store
from streams.events import DocumentUpserted

START = datetime(2025, 3, 1, 12, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def document(document_id: str, texts: Sequence[str], **metadata: Any) -> DocumentUpserted:
    whole = "\n\n".join(texts)
    return DocumentUpserted(
        document_id=document_id,
        source=f"/notes/{document_id}.md",
        title=document_id.title(),
        text=whole,
        content_hash=text_hash(whole),
        metadata=metadata,
    )


def cut(document_id: str, texts: Sequence[str], heading: str = "") -> list[Chunk]:
    return [
        Chunk(
            chunk_id=content_id("chunk", [document_id, position, text]),
            document_id=document_id,
            position=position,
            heading=heading,
            text=text,
            tokens=len(text.split()),
            text_hash=text_hash(text),
        )
        for position, text in enumerate(texts)
    ]


def put(store: Store, document_id: str, texts: Sequence[str], event_id: str, minutes: float = 0) -> PutResult:
    return store.documents.put(
        document(document_id, texts), cut(document_id, texts), event_id=event_id, time=at(minutes)
    )


def test_a_new_document_is_there_with_its_chunks(store: Store) -> None:
    texts = ["one", "two", "three"]
    result = store.documents.put(
        document("a", texts, tags=["x"], year=2025), cut("a", texts), event_id="e1", time=at(0)
    )
    assert [chunk.text for chunk in result.added] == texts
    assert result.removed == []
    assert result.applied
    row = store.documents.get("a")
    assert row is not None
    assert (row.source, row.title, row.metadata) == ("/notes/a.md", "A", {"tags": ["x"], "year": 2025})
    assert (row.updated_at, row.chunks) == (at(0), 3)
    assert store.documents.chunks_of("a") == cut("a", texts)
    assert store.documents.hashes() == {"a": text_hash("one\n\ntwo\n\nthree")}


def test_a_change_replaces_only_the_chunks_that_differ(store: Store) -> None:
    put(store, "a", ["one", "two", "three"], "e1")
    before = {chunk.position: chunk.chunk_id for chunk in store.documents.chunks_of("a")}
    result = put(store, "a", ["one", "2", "three", "four"], "e2", 1)
    assert [chunk.text for chunk in result.added] == ["2", "four"]
    assert result.removed == [before[1]]
    after = store.documents.chunks_of("a")
    assert [chunk.text for chunk in after] == ["one", "2", "three", "four"]
    assert after[0].chunk_id == before[0]


def test_a_chunk_with_another_heading_is_written_again_under_its_id(store: Store) -> None:
    put(store, "a", ["one"], "e1")
    renamed = cut("a", ["one"], heading="Chapter 2")
    result = store.documents.put(document("a", ["one"]), renamed, event_id="e2", time=at(1))
    assert (result.added, result.removed) == (renamed, [])
    assert store.documents.chunks_of("a") == renamed


def test_chunks_may_change_places(store: Store) -> None:
    first, second = cut("a", ["one", "two"])
    store.documents.put(document("a", ["one", "two"]), [first, second], event_id="e1", time=at(0))
    moved = [first.model_copy(update={"position": 1}), second.model_copy(update={"position": 0})]
    store.documents.put(document("a", ["two", "one"]), moved, event_id="e2", time=at(1))
    assert [chunk.text for chunk in store.documents.chunks_of("a")] == ["two", "one"]


@pytest.mark.parametrize(("event_id", "minutes"), [("e0", -1), ("e1", 0)])
def test_an_older_event_or_the_same_again_changes_nothing(store: Store, event_id: str, minutes: float) -> None:
    put(store, "a", ["new"], "e1", 0)
    assert put(store, "a", ["old", "text"], event_id, minutes) == PutResult()
    assert store.documents.delete("a", event_id=event_id, time=at(minutes)) == []
    assert [chunk.text for chunk in store.documents.chunks_of("a")] == ["new"]


def test_a_deleted_document_leaves_a_tombstone_that_only_a_newer_event_revives(store: Store) -> None:
    put(store, "a", ["one", "two"], "e1", 0)
    chunk_ids = [chunk.chunk_id for chunk in store.documents.chunks_of("a")]
    assert store.documents.delete("a", event_id="e2", time=at(2)) == chunk_ids
    assert store.documents.get("a") is None
    assert store.documents.list() == []
    assert store.documents.hashes() == {}
    assert store.documents.chunks(chunk_ids) == {}
    assert store.documents.tombstones() == {"a": at(2)}
    assert not put(store, "a", ["one"], "e1b", 1).applied
    assert put(store, "a", ["back"], "e3", 3).applied
    assert store.documents.tombstones() == {}
    assert store.documents.get("a") is not None


def test_a_deletion_that_arrives_first_holds_against_the_older_upsert(store: Store) -> None:
    assert store.documents.delete("a", event_id="e2", time=at(2)) == []
    assert not put(store, "a", ["one"], "e1", 1).applied
    assert store.documents.counts() == {"documents": 0, "tombstones": 1, "chunks": 0, "embeddings": 0}


def test_any_order_of_arrival_ends_with_the_newest_event(store: Store) -> None:
    steps: list[list[str] | None] = [["one"], ["one", "two"], None, ["three"]]  # None: deleted
    for last in (3, 4):
        for number, order in enumerate(itertools.permutations(range(last))):
            name = f"d{last}-{number}"
            for step in (*order, *order):  # each event twice
                texts = steps[step]
                if texts is None:
                    store.documents.delete(name, event_id=f"e{step}", time=at(step))
                else:
                    put(store, name, texts, f"e{step}", step)
            assert [chunk.text for chunk in store.documents.chunks_of(name)] == (["three"] if last == 4 else [])
    assert store.documents.counts() == {"documents": 24, "tombstones": 6, "chunks": 24, "embeddings": 0}


def test_a_document_without_text_has_no_chunks(store: Store) -> None:
    put(store, "a", ["one"], "e1")
    result = put(store, "a", [], "e2", 1)
    assert len(result.removed) == 1
    row = store.documents.get("a")
    assert row is not None
    assert row.chunks == 0


def test_chunks_that_contradict_are_refused_and_nothing_changes(store: Store) -> None:
    one, two = cut("a", ["one", "two"])
    stranger = cut("b", ["x"])[0].model_copy(update={"position": 5})
    for wrong in ([one, one], [one, two.model_copy(update={"position": 0})], [one, stranger]):
        with pytest.raises(InputError):
            store.documents.put(document("a", ["one"]), wrong, event_id="e1", time=at(0))
    assert store.documents.list() == []


def test_every_chunk_comes_once_in_order_over_several_pages(store: Store) -> None:
    for name in ("b", "a", "c"):
        put(store, name, [f"{name} {number}" for number in range(400)], f"e-{name}")
    found = list(store.documents.all_chunks())
    assert len(found) == 1200
    assert [(chunk.document_id, chunk.position) for chunk in found] == [
        (name, position) for name in "abc" for position in range(400)
    ]
    assert len(store.documents.chunks([chunk.chunk_id for chunk in found])) == 1200


def test_rows_are_found_by_id_and_unknown_ones_left_out(store: Store) -> None:
    put(store, "a", ["one"], "e1")
    put(store, "b", ["two"], "e2")
    store.documents.delete("b", event_id="e3", time=at(1))
    assert set(store.documents.source_of(["a", "b", "nobody"])) == {"a"}
    assert store.documents.source_of([]) == {}
    assert store.documents.chunks(["sha256:none"]) == {}


def test_embeddings_come_back_bit_for_bit_by_embedder(store: Store) -> None:
    vectors = {f"h{number}": np.linspace(-1, 1, 384, dtype=np.float32) * number for number in range(700)}
    store.documents.cache_embeddings("mini@1", vectors)
    store.documents.cache_embeddings("mini@1", {"h1": np.zeros(384, np.float32)})  # known: stays
    found = store.documents.cached_embeddings("mini@1", [*vectors, "unknown"])
    assert set(found) == set(vectors)
    assert all(np.array_equal(found[name], vectors[name]) for name in vectors)
    assert found["h1"].dtype == np.float32
    assert store.documents.cached_embeddings("other@1", list(vectors)) == {}


def test_a_deletion_forgets_embeddings_that_no_other_chunk_needs(store: Store) -> None:
    put(store, "a", ["shared", "only a"], "e1")
    put(store, "b", ["shared"], "e2")
    hashes = [text_hash("shared"), text_hash("only a")]
    store.documents.cache_embeddings("mini@1", {name: np.ones(4, np.float32) for name in hashes})
    store.documents.delete("a", event_id="e3", time=at(1))
    assert set(store.documents.cached_embeddings("mini@1", hashes)) == {text_hash("shared")}


def test_hostile_text_is_stored_as_text(store: Store) -> None:
    texts = ["Robert'); DROP TABLE chunks;--", "a\x00b", "\u202eright to left", "😀" * 50]
    put(store, "x'; --\x00", texts, "e1")
    assert next(chunk.text for chunk in store.documents.chunks_of("x'; --\x00")) == texts[0]
    assert store.documents.counts()["chunks"] == 4


def test_naive_and_zoned_times_compare_as_moments(store: Store) -> None:
    put(store, "a", ["utc noon"], "e1", 0)
    earlier = datetime.fromisoformat("2025-03-01T13:30:00+02:00")  # 11:30 UTC
    result = store.documents.put(document("a", ["x"]), cut("a", ["x"]), event_id="e2", time=earlier)
    assert not result.applied
    later = datetime(2025, 3, 1, 12, 1)  # noqa: DTZ001
    assert store.documents.put(document("a", ["x"]), cut("a", ["x"]), event_id="e3", time=later).applied
