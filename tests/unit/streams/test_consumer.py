"""Retries, dead letters, order, commits, and stopping."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import Unavailable
from streams.codec import decode, encode
from streams.consumer import Consumer
from streams.dead_letters import dead_letter_topic
from streams.embedded import EmbeddedLog
from streams.events import LLM_FEEDBACK, Event, FeedbackGiven
from streams.log import Record, StoredRecord, lag

DEAD = dead_letter_topic(LLM_FEEDBACK)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EmbeddedLog]:
    log = EmbeddedLog(tmp_path / "log.db", session_timeout=0.6)
    yield log
    log.close()


def fill(log: EmbeddedLog, number: int, keys: int = 5) -> None:
    events = [
        Event(id=f"e{n}", data=FeedbackGiven(interaction_id=f"i{n % keys}", comment=str(n))) for n in range(number)
    ]
    log.append(LLM_FEEDBACK, [encode(event) for event in events])


def ends(log: EmbeddedLog) -> dict[str, dict[int, int]]:
    return {LLM_FEEDBACK: log.end_offsets(LLM_FEEDBACK)}


def dead(log: EmbeddedLog) -> list[StoredRecord]:
    return [each for partition in log.end_offsets(DEAD) for each in log.read(DEAD, partition, 0)]


def test_it_handles_everything_in_order_of_the_keys_and_commits(log: EmbeddedLog):
    fill(log, 100)
    seen: list[tuple[str, int]] = []

    def handle(event: Event, record: StoredRecord) -> None:
        assert isinstance(event.data, FeedbackGiven)
        seen.append((record.key, int(event.data.comment)))

    consumer = Consumer(log, "g", {LLM_FEEDBACK: handle})
    assert consumer.run_until(ends(log), 20) == 100
    for key in {key for key, _ in seen}:
        numbers = [number for each, number in seen if each == key]
        assert numbers == sorted(numbers)
    assert lag(log, "g", LLM_FEEDBACK) == 0
    assert consumer.run_until(ends(log), 20) == 0
    assert len(seen) == 100


def test_a_handler_that_recovers_is_called_again_and_nothing_is_put_aside(log: EmbeddedLog):
    fill(log, 1)
    calls: list[str] = []

    def handle(event: Event, record: StoredRecord) -> None:
        calls.append(event.id)
        if len(calls) < 4:
            raise ValueError("not yet")

    assert Consumer(log, "g", {LLM_FEEDBACK: handle}, backoff=0.001).run_until(ends(log), 20) == 1
    assert calls == ["e0"] * 4
    assert dead(log) == []


def test_a_record_that_keeps_failing_becomes_a_dead_letter_as_it_was(log: EmbeddedLog):
    fill(log, 10, keys=1)
    calls: list[str] = []

    def handle(event: Event, record: StoredRecord) -> None:
        calls.append(event.id)
        if event.id == "e4":
            raise ValueError("poison ü")

    Consumer(log, "g", {LLM_FEEDBACK: handle}, retries=2, backoff=0.001).run_until(ends(log), 20)
    assert calls == ["e0", "e1", "e2", "e3", "e4", "e4", "e4", "e5", "e6", "e7", "e8", "e9"]
    (letter,) = dead(log)
    headers = {name: text.decode() for name, text in letter.headers}
    assert headers["dlq_error"] == "ValueError: poison ü"
    assert (headers["dlq_attempts"], headers["dlq_topic"], headers["dlq_offset"]) == ("3", LLM_FEEDBACK, "4")
    assert decode(letter).id == "e4"


def test_a_record_that_is_no_event_becomes_a_dead_letter_at_once(log: EmbeddedLog):
    log.append(LLM_FEEDBACK, [Record(key="i0", value=b"\xff raw", headers=(("x", b"\x00"),))])
    fill(log, 1)
    seen: list[str] = []
    Consumer(log, "g", {LLM_FEEDBACK: lambda event, record: seen.append(event.id)}).run_until(ends(log), 20)
    assert seen == ["e0"]
    (letter,) = dead(log)
    assert letter.value == b"\xff raw"
    assert letter.headers[0] == ("x", b"\x00")
    headers = {name: text.decode() for name, text in letter.headers[1:]}
    assert headers["dlq_error"].startswith("UndecodableEvent: the header ce_id is missing")
    assert headers["dlq_attempts"] == "1"


def test_what_is_unavailable_is_waited_for_and_not_put_aside(log: EmbeddedLog):
    fill(log, 1)
    calls: list[str] = []

    def handle(event: Event, record: StoredRecord) -> None:
        calls.append(event.id)
        if len(calls) < 7:
            raise Unavailable("the database is away")

    Consumer(log, "g", {LLM_FEEDBACK: handle}, retries=1, backoff=0.001).run_until(ends(log), 20)
    assert len(calls) == 7
    assert dead(log) == []


def test_not_reaching_the_target_in_time_is_an_error_that_says_where_it_stands(log: EmbeddedLog):
    fill(log, 1)

    def handle(event: Event, record: StoredRecord) -> None:
        raise Unavailable("away")

    with pytest.raises(Unavailable, match="group g did not reach its target"):
        Consumer(log, "g", {LLM_FEEDBACK: handle}, backoff=0.01).run_until(ends(log), 0.3)
    assert lag(log, "g", LLM_FEEDBACK) == 1


def test_stopping_finishes_and_commits_the_record_in_hand(log: EmbeddedLog):
    fill(log, 10, keys=1)
    stop, started, go_on = threading.Event(), threading.Event(), threading.Event()
    seen: list[str] = []

    def handle(event: Event, record: StoredRecord) -> None:
        seen.append(event.id)
        if event.id == "e2":
            started.set()
            assert go_on.wait(20)

    thread = threading.Thread(target=Consumer(log, "g", {LLM_FEEDBACK: handle}).run, args=(stop,), daemon=True)
    thread.start()
    assert started.wait(20)
    stop.set()
    go_on.set()
    thread.join(20)
    assert not thread.is_alive()
    assert seen == ["e0", "e1", "e2"]
    assert lag(log, "g", LLM_FEEDBACK) == 7


def test_a_handler_slower_than_the_session_keeps_its_partitions(log: EmbeddedLog):
    fill(log, 1, keys=1)
    calls: list[str] = []

    def slow(event: Event, record: StoredRecord) -> None:
        calls.append(event.id)
        time.sleep(1.5)

    others = threading.Event()
    rival = threading.Thread(target=Consumer(log, "g", {LLM_FEEDBACK: slow}).run, args=(others,), daemon=True)
    consumer = Consumer(log, "g", {LLM_FEEDBACK: slow})
    rival.start()
    consumer.run_until(ends(log), 20)
    others.set()
    rival.join(20)
    assert calls == ["e0"]


def test_a_crash_between_handling_and_commit_delivers_again(log: EmbeddedLog):
    fill(log, 3, keys=1)
    seen: list[str] = []

    class PowerCut(BaseException):
        pass

    def handle(event: Event, record: StoredRecord) -> None:
        seen.append(event.id)
        if seen == ["e0", "e1"]:
            raise PowerCut

    with pytest.raises(PowerCut):
        Consumer(log, "g", {LLM_FEEDBACK: handle}).run_until(ends(log), 20)
    Consumer(log, "g", {LLM_FEEDBACK: handle}).run_until(ends(log), 20)
    assert seen == ["e0", "e1", "e0", "e1", "e2"]
