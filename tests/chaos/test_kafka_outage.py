"""The broker dies under load and comes back, and is away for a while: nothing is lost, and nothing is stored twice."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event as Flag
from pathlib import Path

import pytest
from sqlalchemy import select

from infra.kafka_broker import KafkaBroker
from infra.settings import Settings
from store.opening import open_store
from store.tables import interactions
from streams.consumer import Consumer
from streams.events import LLM_INTERACTIONS, InteractionRecorded
from streams.handling import Batched
from streams.kafka import KafkaLog
from streams.log import EventLog, lag
from streams.opening import open_emitter, open_log

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(1200)]
GROUP = "sink"
RATE = 300
"""Events a second."""
AT_ONCE = 30
KEYS = 20
PATIENCE = 120.0
_processes = multiprocessing.get_context("forkserver")


def emit(settings: Settings, books: Path, stop: Flag) -> None:
    """Put events on the stream at a steady rate; keep books of the acknowledged ones and of what each call took."""
    emitter = open_emitter(settings, open_log(settings), source="chaos")
    names: list[str] = []
    calls: list[tuple[float, float]] = []
    while not stop.is_set():
        receipts = []
        for _ in range(AT_ONCE):
            name = f"e{len(names):08}"
            event = InteractionRecorded(
                interaction_id=name,
                conversation_id=f"c{len(names) % KEYS}",
                prompt=name,
                response=name * 50,
                finish_reason="stop",
            )
            began = time.perf_counter()
            receipts.append(emitter.emit(event, name))
            calls.append((time.time(), time.perf_counter() - began))
            names.append(name)
        assert all(receipt.wait(30) for receipt in receipts)
        time.sleep(AT_ONCE / RATE)
    assert emitter.flush(PATIENCE)
    emitter.close()
    books.write_text(json.dumps({"names": names, "calls": calls}))


def consume(settings: Settings, stop: Flag) -> None:
    """Store what arrives."""
    with closing(open_store(settings)) as store, closing(open_log(settings)) as log:
        Consumer(
            log,
            GROUP,
            {LLM_INTERACTIONS: Batched(lambda pairs: store.interactions.put_many([event for event, _ in pairs]))},
        ).run(stop)


@contextmanager
def running(work: Callable[..., None], *arguments: object) -> Iterator[BaseProcess]:
    process = _processes.Process(target=work, args=arguments)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def p99(calls: Sequence[tuple[float, float]], start: float, end: float) -> float:
    """Microseconds of the calls between two times."""
    times = sorted(seconds for moment, seconds in calls if start <= moment < end)
    assert len(times) > 100
    return times[int(len(times) * 0.99)] * 1e6


def ids(log: EventLog) -> list[str]:
    found = []
    for partition, end in log.end_offsets(LLM_INTERACTIONS).items():
        position = 0
        while position < end and (batch := log.read(LLM_INTERACTIONS, partition, position)):
            found += [dict(each.headers)["ce_id"].decode() for each in batch]
            position = batch[-1].offset + 1
    return found


def wait_until(done: Callable[[], bool]) -> float:
    """Seconds it took."""
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.1)
    return time.monotonic() - began


@pytest.mark.parametrize("frames", [False, True], ids=["public", "frames"])
def test_a_broker_that_dies_and_stays_away_loses_nothing(
    on_kafka: Settings, own_broker: KafkaBroker, tmp_path: Path, scale: Callable[[int, int], int], frames: bool
):
    kills, away = scale(1, 15), scale(3, 120)
    settings = on_kafka.model_copy(update={"log": on_kafka.log.model_copy(update={"frames": frames})})
    chance = random.Random(f"outage {frames}")
    stop_emitting, stop_consuming = _processes.Event(), _processes.Event()
    books = tmp_path / "books.json"
    log = KafkaLog(settings.log)
    log.ensure_topics([LLM_INTERACTIONS])
    with (
        closing(open_store(settings)) as store,
        running(emit, settings, books, stop_emitting) as emitting,
        running(consume, settings, stop_consuming) as consuming,
    ):
        wait_until(lambda: store.interactions.count() > 0 or not (emitting.is_alive() and consuming.is_alive()))
        assert store.interactions.count()
        marks = [time.time()]
        time.sleep(3)
        marks.append(time.time())
        for _ in range(kills):
            own_broker.kill()
            own_broker.start()
            time.sleep(chance.uniform(1, 3))
        own_broker.kill()
        marks.append(time.time())
        time.sleep(away)
        marks.append(time.time())
        own_broker.start()
        behind = store.interactions.count()
        returned = time.monotonic()
        wait_until(lambda: store.interactions.count() > behind)
        stop_emitting.set()
        emitting.join(PATIENCE)
        assert emitting.exitcode == 0
        written = json.loads(books.read_text())
        wait_until(
            lambda: store.interactions.count() >= len(written["names"]) and lag(log, GROUP, LLM_INTERACTIONS) == 0
        )
        drained = time.monotonic() - returned
        stop_consuming.set()
        consuming.join(30)
        with store.engine.connect() as connection:
            stored = list(connection.execute(select(interactions.c.interaction_id)).scalars())
    in_log = Counter(ids(log))
    log.close()
    calm, outage = p99(written["calls"], *marks[:2]), p99(written["calls"], *marks[2:])
    print(
        f"{'frames' if frames else 'public form'}: {kills + 1} kills of the broker, away {away} s,"
        f" {len(written['names'])} events acknowledged, {len(set(written['names']) - set(stored))} lost,"
        f" {len(stored) - len(set(stored))} stored twice, {in_log.total() - len(in_log)} twice in the log,"
        f" drained {drained:.1f} s after the return; call p99 {calm:.0f} us before, {outage:.0f} us while away"
    )
    assert sorted(stored) == written["names"]
    assert set(in_log) == set(written["names"])
