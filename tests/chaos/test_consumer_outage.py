"""The store is away for a while: nothing is lost, emitting goes on, and all of it is stored after the return."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest
from postgres_fixture import PostgresServer, postgres_server

from infra import database
from infra.errors import Unavailable
from infra.identity import new_id
from infra.settings import DatabaseSettings, LogSettings, Settings
from store.opening import Store, open_store
from streams.consumer import DELAYS, Batched, Consumer
from streams.embedded import EmbeddedLog
from streams.emitter import Emitter
from streams.events import LLM_INTERACTIONS, Event, InteractionRecorded
from streams.kafka import KafkaLog
from streams.log import EventLog, StoredRecord, lag
from streams.masking import Masker

__all__ = ["postgres_server"]

DRAIN_SECONDS = 60.0
RATE = 100
"""Events a second while the store is away."""


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EventLog]:
    if request.param == "embedded":
        log: EventLog = EmbeddedLog(tmp_path / "log.db")
    else:
        log = KafkaLog(LogSettings(bootstrap_servers=request.getfixturevalue("kafka_broker").address))
    yield log
    log.close()


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """The file is locked, as by a program that began to write and hangs."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@contextmanager
def stopped(server: PostgresServer) -> Iterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.resume()


class Application:
    """Emits a steady stream and notes how long each call took."""

    def __init__(self, emitter: Emitter, prefix: str) -> None:
        self._emitter = emitter
        self._prefix = prefix
        self.sent = 0
        self.calls: list[float] = []

    def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            name = f"{self._prefix}{self.sent}"
            event = InteractionRecorded(
                interaction_id=name, conversation_id=name[-2:], prompt="p", response="r", finish_reason="stop"
            )
            began = time.perf_counter()
            receipt = self._emitter.emit(event)
            self.calls.append(time.perf_counter() - began)
            assert receipt.wait(20), receipt.reason
            self.sent += 1
            time.sleep(1 / RATE)

    def p99(self) -> float:
        """Of the calls so far, seconds."""
        return sorted(self.calls)[int(len(self.calls) * 0.99)]


class Sink:
    """A consumer that stores interactions, in a thread, and notes the batches that the store did not take."""

    def __init__(self, log: EventLog, store: Store, group: str) -> None:
        self._store = store
        self._stop = threading.Event()
        self.failures = 0
        self.consumer = Consumer(log, group, {LLM_INTERACTIONS: Batched(self._put)}, delays=DELAYS)
        self.consumer.run_until({LLM_INTERACTIONS: log.end_offsets(LLM_INTERACTIONS)}, 60)
        self._before = store.interactions.count()
        self._thread = threading.Thread(target=self.consumer.run, args=(self._stop,), daemon=True)
        self._thread.start()

    @property
    def stored(self) -> int:
        return self._store.interactions.count() - self._before

    def drained(self, number: int) -> float:
        """Seconds until so many are stored."""
        began = time.monotonic()
        while self.stored < number:
            assert time.monotonic() - began < DRAIN_SECONDS
            time.sleep(0.05)
        return time.monotonic() - began

    def end(self) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _put(self, events: Sequence[tuple[Event, StoredRecord]]) -> None:
        try:
            self._store.interactions.put_many([event for event, _ in events])
        except Unavailable:
            self.failures += 1
            raise


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def store_and_outage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Store, AbstractContextManager[None]]]:
    """An empty store, and what takes it away while it is entered."""
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 500)  # so that a short outage outlasts SQLite's own patience
    server = request.getfixturevalue("postgres_server") if request.param == "postgres" else None
    url = server.new_database() if server else ""
    store = open_store(Settings(home=tmp_path, database=DatabaseSettings(url=url)))
    yield store, stopped(server) if server else locked(tmp_path / "records.db")
    store.close()


@pytest.mark.timeout(600)
def test_a_store_that_is_away_costs_nothing_but_time(
    log: EventLog,
    store_and_outage: tuple[Store, AbstractContextManager[None]],
    scale: Callable[[int, int], int],
):
    store, outage = store_and_outage
    seconds = scale(2, 120)
    group = f"g{new_id()}"
    sink = Sink(log, store, group)
    emitter = Emitter(log, masker=Masker(), outbox=None, source="chaos")
    application = Application(emitter, f"{group}-")
    application.run(1)
    usual = application.p99()
    with outage:
        application.run(seconds)
        assert sink.failures, "the consumer never met the outage"
        behind = lag(log, group, LLM_INTERACTIONS)
    drained = sink.drained(application.sent)
    sink.end()
    emitter.close()
    assert behind > 0
    assert lag(log, group, LLM_INTERACTIONS) == 0
    assert sink.stored == application.sent
    assert sink.consumer.counters["put_off"] == sink.consumer.counters["dead"] == 0
    print(f"\nstore away {seconds} s: {application.sent} events, {behind} behind at its return, 0 lost,", end=" ")
    print(f"drained in {drained:.1f} s, {sink.failures} failed batches,", end=" ")
    print(f"emit() p99 {usual * 1e6:.0f} µs before, {application.p99() * 1e6:.0f} µs with the outage")
