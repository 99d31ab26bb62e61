"""Handlers of several events at once: what they are given, and what happens when one of them is bad."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from infra.errors import InputError, Unavailable
from streams import consumer
from streams.codec import encode
from streams.consumer import Batched, Consumer
from streams.dead_letters import dead_letters
from streams.embedded import EmbeddedLog
from streams.embedded_group import EmbeddedReader
from streams.events import LLM_FEEDBACK, Event, FeedbackGiven
from streams.handling import BATCH_BYTES
from streams.log import Record, StoredRecord, lag

Events = Sequence[tuple[Event, StoredRecord]]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EmbeddedLog]:
    log = EmbeddedLog(tmp_path / "log.db")
    yield log
    log.close()


def fill(log: EmbeddedLog, number: int, keys: int = 5, size: int = 0) -> None:
    events = [
        Event(id=f"e{n}", data=FeedbackGiven(interaction_id=f"i{n % keys}", comment=f"{n} " + "x" * size))
        for n in range(number)
    ]
    log.append(LLM_FEEDBACK, [encode(event) for event in events])


def consume(log: EmbeddedLog, handler: Batched) -> int:
    one = Consumer(log, "g", {LLM_FEEDBACK: handler}, retries=1, backoff=0.001)
    return one.run_until({LLM_FEEDBACK: log.end_offsets(LLM_FEEDBACK)}, 30)


def test_a_batch_holds_what_was_polled_in_the_order_of_each_partition(log: EmbeddedLog):
    fill(log, 300)
    calls: list[list[tuple[int, int]]] = []

    def handle(events: Events) -> None:
        calls.append([(record.partition, record.offset) for _, record in events])

    assert consume(log, Batched(handle, 50)) == 300
    assert lag(log, "g", LLM_FEEDBACK) == 0
    assert max(map(len, calls)) == 50
    assert len(calls) < 12
    seen = [place for call in calls for place in call]
    assert len(seen) == 300
    assert [place for number in range(3) for place in seen if place[0] == number] == sorted(seen)


def test_a_batch_that_fails_is_split_until_the_bad_events_are_alone(log: EmbeddedLog):
    fill(log, 200, keys=1)
    bad = {"e17", "e18", "e150"}
    done: list[str] = []
    calls: list[int] = []

    def handle(events: Events) -> None:
        calls.append(len(events))
        ids = [event.id for event, _ in events]
        if bad.intersection(ids):
            raise ValueError("one of them is bad")
        done.extend(ids)  # as a transaction does: all or none

    assert consume(log, Batched(handle, 200)) == 200
    assert done == [f"e{n}" for n in range(200) if f"e{n}" not in bad]
    letters = dead_letters(log, LLM_FEEDBACK)
    assert [(letter.origin_offset, letter.attempts) for letter in letters] == [(17, 2), (18, 2), (150, 2)]
    assert len(calls) < 50
    assert lag(log, "g", LLM_FEEDBACK) == 0


def test_what_is_no_event_does_not_fail_the_batch_it_came_in(log: EmbeddedLog):
    fill(log, 10, keys=1)
    log.append(LLM_FEEDBACK, [Record(key="i0", value=b"not an event")])
    fill(log, 10, keys=1)
    calls: list[int] = []
    assert consume(log, Batched(lambda events: calls.append(len(events)), 100)) == 21
    assert calls == [15, 5]  # of a first poll of 16, and of the rest
    assert [letter.origin_offset for letter in dead_letters(log, LLM_FEEDBACK)] == [10]


def test_a_batch_waits_as_a_whole_for_what_is_away(log: EmbeddedLog):
    fill(log, 30, keys=1)
    calls: list[int] = []

    def handle(events: Events) -> None:
        calls.append(len(events))
        if len(calls) < 6:
            raise Unavailable("the database is away")

    assert consume(log, Batched(handle, 30)) == 30
    assert calls == [16] * 6 + [14]
    assert dead_letters(log, LLM_FEEDBACK) == []


def test_an_error_of_input_is_not_tried_again(log: EmbeddedLog):
    fill(log, 4, keys=1)
    calls: list[list[str]] = []

    def handle(events: Events) -> None:
        calls.append([event.id for event, _ in events])
        if "e3" in calls[-1]:
            raise InputError("cannot be used")

    consume(log, Batched(handle, 4))
    assert calls == [["e0", "e1", "e2", "e3"], ["e0", "e1"], ["e2", "e3"], ["e2"], ["e3"]]
    assert [letter.attempts for letter in dead_letters(log, LLM_FEEDBACK)] == [1]


def test_a_batch_is_bounded_in_bytes(log: EmbeddedLog):
    fill(log, 12, keys=1, size=3 << 20)
    sizes: list[int] = []
    consume(log, Batched(lambda events: sizes.append(sum(len(record.value) for _, record in events))))
    assert sum(sizes) > 12 * (3 << 20)
    assert max(sizes) <= BATCH_BYTES
    assert len(sizes) <= 8


def test_a_value_longer_than_a_batch_goes_alone(log: EmbeddedLog):
    fill(log, 1, size=100)
    fill(log, 1, size=BATCH_BYTES)
    fill(log, 1, size=100)
    sizes: list[int] = []
    consume(log, Batched(lambda events: sizes.append(len(events))))
    assert sizes == [1, 1, 1]


def test_what_is_polled_at_once_is_bounded_in_bytes(log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(consumer, "POLL_BYTES", 1 << 20)
    fill(log, 300, keys=1)
    fill(log, 200, keys=1, size=100 << 10)
    fill(log, 300, keys=1)
    polls: list[tuple[int, int]] = []
    poll = EmbeddedReader.poll

    def noting(self: EmbeddedReader, **arguments: float) -> list[StoredRecord]:
        records = poll(self, **arguments)  # type: ignore[arg-type]
        polls.append((len(records), sum(len(record.value) for record in records)))
        return records

    monkeypatch.setattr(EmbeddedReader, "poll", noting)
    assert consume(log, Batched(lambda events: None, 100)) == 800
    assert polls[0][0] == consumer.POLL
    assert max(number for number, _ in polls) == 100
    long = [size for _, size in polls if size > 500 << 10]
    assert len(long) > 5
    assert max(long[2:]) < 3 << 20
