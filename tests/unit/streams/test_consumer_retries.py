"""The retry topic: what waits there, what waits behind it, who takes it over, and where it goes in the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from infra.errors import Conflict, Unavailable
from streams import retry
from streams.codec import encode
from streams.consumer import Consumer
from streams.dead_letters import dead_letters, original, read_letter
from streams.embedded import EmbeddedLog
from streams.events import LLM_FEEDBACK, Event, FeedbackGiven
from streams.log import Record, StoredRecord, lag, retry_topic

RETRY = retry_topic(LLM_FEEDBACK, "g")
LONG = (60.0,)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EmbeddedLog]:
    log = EmbeddedLog(tmp_path / "log.db", session_timeout=0.6)
    yield log
    log.close()


def send(log: EmbeddedLog, *names: str) -> None:
    """Events whose key is the first letter of their name."""
    log.append(LLM_FEEDBACK, [encode(Event(id=name, data=FeedbackGiven(interaction_id=name[0]))) for name in names])


class Handler:
    """Notes what it handled; fails on names as often as told."""

    def __init__(self, **failures: int) -> None:
        self.failures = failures
        self.handled: list[str] = []
        self.calls: list[str] = []

    def __call__(self, event: Event, record: StoredRecord) -> None:
        self.calls.append(event.id)
        if self.failures.get(event.id, 0) > 0:
            self.failures[event.id] -= 1
            raise ValueError(f"{event.id} fails")
        self.handled.append(event.id)


def consumer(log: EmbeddedLog, handler: Callable[[Event, StoredRecord], None], delays: tuple[float, ...]) -> Consumer:
    return Consumer(log, "g", {LLM_FEEDBACK: handler}, retries=1, backoff=0.001, delays=delays)


def drain(log: EmbeddedLog, handler: Callable[[Event, StoredRecord], None], delays: tuple[float, ...]) -> Consumer:
    """Run until nothing waits, neither on the topic nor for a retry."""
    stop, one = threading.Event(), consumer(log, handler, delays)
    thread = threading.Thread(target=one.run, args=(stop,), daemon=True)
    thread.start()
    wait_for(lambda: lag(log, "g", LLM_FEEDBACK) == lag(log, "g", RETRY) == one.counters["waiting"] == 0)
    stop.set()
    thread.join(20)
    assert not thread.is_alive()
    return one


def until_read(log: EmbeddedLog, handler: Callable[[Event, StoredRecord], None], delays: tuple[float, ...]) -> Consumer:
    """Read the topic to its end and retry nothing meanwhile, however slow the machine is."""
    one = consumer(log, handler, delays)
    with patch.object(retry.Retries, "due", lambda self, limit: []):
        one.run_until({LLM_FEEDBACK: log.end_offsets(LLM_FEEDBACK)}, 20)
    return one


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kept(log: EmbeddedLog) -> list[StoredRecord]:
    return [each for number in log.end_offsets(RETRY) for each in log.read(RETRY, number, 0)]


def test_a_failing_record_waits_and_only_its_own_key_waits_behind_it(log: EmbeddedLog):
    send(log, "a1", "b1", "a2", "c1", "b2", "a3")
    handler = Handler(a1=9)
    one = until_read(log, handler, LONG)
    assert sorted(handler.handled) == ["b1", "b2", "c1"]
    assert handler.calls.count("a1") == 2
    assert not {"a2", "a3"}.intersection(handler.calls)
    assert (one.counters["waiting"], one.counters["put_off"], one.counters["dead"]) == (3, 1, 0)
    records = [{name: value.decode() for name, value in record.headers} for record in kept(log)]
    assert [(each["ce_id"], each["retry_key"], each["retry_attempts"]) for each in records] == [
        ("a1", "a", "2"),
        ("a2", "a", "0"),
        ("a3", "a", "0"),
    ]
    assert records[0]["retry_error"] == "ValueError: a1 fails"
    assert float(records[0]["retry_due"]) == pytest.approx(time.time() + 60, abs=20)


def test_it_is_handled_in_order_when_it_works_again(log: EmbeddedLog):
    send(log, "a1", "b1", "a2", "a3", "b2")
    handler = Handler(a1=3, a3=2)  # in place twice, then at the first retry; a3 fails when its turn has come
    one = drain(log, handler, (0.05, 0.1))
    assert [name for name in handler.handled if name[0] == "a"] == ["a1", "a2", "a3"]
    assert [name for name in handler.handled if name[0] == "b"] == ["b1", "b2"]
    assert dead_letters(log, LLM_FEEDBACK) == []
    assert one.counters["retried"] == 3


def test_after_the_last_retry_it_is_a_dead_letter_as_it_came_and_its_key_goes_on(log: EmbeddedLog):
    send(log, "a1", "a2")
    handler = Handler(a1=99)
    one = drain(log, handler, (0.02, 0.02, 0.02))
    assert handler.calls == ["a1"] * 5 + ["a2"]
    (letter,) = dead_letters(log, LLM_FEEDBACK)
    (first, *_) = [each for number in range(3) for each in log.read(LLM_FEEDBACK, number, 0)]
    assert (letter.error, letter.attempts, letter.key) == ("ValueError: a1 fails", 5, "a")
    assert (letter.origin_partition, letter.origin_offset) == (first.partition, first.offset)
    kept_as = original(read_letter(log, letter))
    assert (kept_as.key, kept_as.value, kept_as.headers) == (first.key, first.value, first.headers)
    assert one.counters["dead"] == 1


def test_what_waits_outlives_the_member_and_new_records_of_the_key_still_follow(log: EmbeddedLog):
    send(log, "a1", "a2")
    until_read(log, Handler(a1=99), (0.4,))
    send(log, "a3", "b1")
    handler = Handler()
    until_read(log, handler, (0.4,))
    drain(log, handler, (0.4,))
    assert [name for name in handler.handled if name[0] == "a"] == ["a1", "a2", "a3"]
    assert sorted(handler.handled) == ["a1", "a2", "a3", "b1"]


def test_attempts_are_counted_over_members(log: EmbeddedLog):
    send(log, "a1")
    until_read(log, Handler(a1=99), (0.01, LONG[0]))
    late = Handler(a1=99)
    stop = threading.Event()
    second = consumer(log, late, (0.01, 0.02))
    thread = threading.Thread(target=second.run, args=(stop,), daemon=True)
    thread.start()
    wait_for(lambda: bool(dead_letters(log, LLM_FEEDBACK)))
    stop.set()
    thread.join(20)
    (letter,) = dead_letters(log, LLM_FEEDBACK)
    assert letter.attempts == 4
    assert late.calls == ["a1", "a1"]


def test_a_redelivered_record_that_waits_already_waits_once(log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch):
    send(log, "a1")

    class PowerCut(BaseException):
        pass

    def cut(*_: object) -> None:
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr("streams.consumer._Member._commit", cut)  # after the retry topic has it, before the commit
        with pytest.raises(PowerCut):
            until_read(log, Handler(a1=99), (0.2,))
    assert (len(kept(log)), lag(log, "g", LLM_FEEDBACK)) == (1, 1)
    handler = Handler()
    drain(log, handler, (0.2,))
    assert handler.handled == ["a1"]
    assert len(kept(log)) == 1


def test_what_another_member_put_there_in_between_is_handled_too(log: EmbeddedLog):
    send(log, "a1")
    until_read(log, Handler(a1=99), (0.01,))
    foreign = kept(log)[0]
    handler = Handler(b1=2)
    stop, one = threading.Event(), consumer(log, handler, (0.1,))
    thread = threading.Thread(target=one.run, args=(stop,), daemon=True)
    thread.start()
    wait_for(lambda: "a1" in handler.handled)
    # As a member that was suspended does: it appends to a partition that is another's by now.
    headers = tuple((name, b"77" if name == "retry_offset" else value) for name, value in foreign.headers)
    log.append(RETRY, [Record(foreign.key, foreign.value, headers)] * 2)
    send(log, "b1")
    send(log, *(f"{key}2" for key in "cdefghij"))
    wait_for(lambda: "b1" in handler.handled)
    stop.set()
    thread.join(20)
    drain(log, handler, (0.1,))
    assert handler.handled.count("a1") == 2
    assert handler.handled.count("b1") == 1


def test_with_too_much_waiting_nothing_more_is_read(log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retry, "MAX_WAITING", 5)
    send(log, *(f"a{number}" for number in range(200)))
    handler = Handler(a0=99)
    stop, one = threading.Event(), consumer(log, handler, (0.5, 0.5))
    most = 0
    thread = threading.Thread(target=one.run, args=(stop,), daemon=True)
    thread.start()
    while lag(log, "g", LLM_FEEDBACK) or lag(log, "g", RETRY):
        most = max(most, one.counters["waiting"])
        time.sleep(0.01)
    stop.set()
    thread.join(20)
    assert 0 < most <= 5 + 1
    assert handler.handled == [f"a{number}" for number in range(1, 200)]


def test_what_is_away_counts_neither_at_first_nor_at_a_retry(log: EmbeddedLog):
    send(log, "a1")
    calls: list[str] = []

    def handle(event: Event, record: StoredRecord) -> None:
        calls.append(event.id)
        if len(calls) < 4 or 5 < len(calls) < 9:
            raise Unavailable("away")
        if len(calls) < 6:
            raise ValueError("fails")

    drain(log, handle, (0.02,))
    assert len(calls) == 9
    assert dead_letters(log, LLM_FEEDBACK) == []


def test_a_retry_topic_with_too_few_partitions_is_refused(log: EmbeddedLog, tmp_path: Path):
    log.ensure_topics([LLM_FEEDBACK])
    fewer = EmbeddedLog(tmp_path / "log.db", partitions=1)
    fewer.ensure_topics([RETRY])
    with pytest.raises(Conflict, match=r"llm\.feedback\.g\.retry has fewer partitions than llm\.feedback; seen: 1"):
        consumer(log, Handler(), LONG).run(threading.Event())
    fewer.close()
