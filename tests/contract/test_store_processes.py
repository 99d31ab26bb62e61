"""Two processes on one store: no lost write, no shared number, no "database is locked"."""

from __future__ import annotations

import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from infra.identity import content_id, text_hash
from infra.llm.chat import Message
from infra.settings import Settings
from store.documents import Chunk
from store.opening import open_store
from store.releases import Release
from streams.events import DocumentUpserted, Event, InteractionRecorded

START = datetime(2025, 3, 1, 12, tzinfo=UTC)
ROUNDS = 20


def write(settings: Settings, writer: int) -> list[int]:
    """Open the store and write to every part of it; the numbers of the pushed prompt versions."""
    store = open_store(settings)
    numbers = []
    for turn in range(ROUNDS):
        message = Message(role="user", content=f"writer {writer} turn {turn}")
        numbers.append(store.prompts.push("post", [message]).number)
        store.prompts.label("post", "production", numbers[-1])
        interaction = InteractionRecorded(
            interaction_id=f"i{turn}", conversation_id="c", prompt="p", response="r", finish_reason="stop"
        )
        store.interactions.put(Event(id=f"e{turn}", time=START, data=interaction))
        release = store.releases.put(Release(prompt=f"post@{turn}", model=f"m{writer}"))
        store.releases.promote("production", release.id, reason="turn", actor=str(writer))
        put_document(store.documents, writer, turn)
        assert store.interactions.list(limit=1)
    store.close()
    return numbers


def put_document(documents, writer: int, turn: int) -> None:  # type: ignore[no-untyped-def]
    texts = [f"{writer} {turn} {position}" for position in range(5)]
    cut = [
        Chunk(
            chunk_id=content_id("chunk", [position, text]),
            document_id="shared",
            position=position,
            text=text,
            tokens=3,
            text_hash=text_hash(text),
        )
        for position, text in enumerate(texts)
    ]
    document = DocumentUpserted(
        document_id="shared", source="s", title="t", text=" ".join(texts), content_hash=f"{writer} {turn}"
    )
    time = START + timedelta(minutes=turn)
    documents.put(document, cut, event_id=f"d {writer} {turn}", time=time)


def test_two_processes_write_to_a_store_that_neither_has_made(store_settings: Settings) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        first, second = pool.map(write, [store_settings] * 2, [1, 2], timeout=120)
    store = open_store(store_settings)
    assert sorted(first + second) == list(range(1, 2 * ROUNDS + 1))
    assert [version.number for version in store.prompts.versions("post")] == list(range(1, 2 * ROUNDS + 1))
    assert store.interactions.count() == ROUNDS
    history = store.releases.history("production")
    assert len(history) == 2 * ROUNDS
    for newer, older in itertools.pairwise(history):
        assert newer.change.previous == older.change.release_id  # no promotion overlooked another
    shared = store.documents.get("shared")
    assert shared is not None
    assert shared.chunks == 5
    writer, turn = shared.content_hash.split()
    assert turn == str(ROUNDS - 1)
    assert {chunk.text.rsplit(" ", 1)[0] for chunk in store.documents.chunks_of("shared")} == {f"{writer} {turn}"}
    store.close()


@pytest.mark.parametrize("processes", [2])
def test_reading_waits_for_no_writer(store_settings: Settings, processes: int) -> None:
    store = open_store(store_settings)
    with store.engine.begin() as writing:
        writing.exec_driver_sql("DELETE FROM alerts")
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(count_prompts, [store_settings] * processes, timeout=20))
    assert found == [0] * processes
    store.close()


def count_prompts(settings: Settings) -> int:
    """Open the store and list, while another process holds the write lock for as long as it takes."""
    store = open_store(settings)
    try:
        return len(store.prompts.list())
    finally:
        store.close()
