"""Records that fail for a while, while members come and go: each key's order holds, on both logs."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.identity import new_id
from infra.settings import LogSettings
from streams.codec import encode
from streams.consumer import Consumer
from streams.dead_letters import dead_letters
from streams.embedded import EmbeddedLog
from streams.events import Event, InteractionRecorded
from streams.kafka import KafkaLog
from streams.log import EventLog, StoredRecord, lag, retry_topic

KEYS = 31
DELAYS = (0.2, 0.4, 0.6)
PATIENCE = 60.0


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def open_log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], EventLog]]:
    opened: list[EventLog] = []

    def open_one() -> EventLog:
        if request.param == "embedded":
            log: EventLog = EmbeddedLog(tmp_path / "log.db", session_timeout=2)
        else:
            address = request.getfixturevalue("kafka_broker").address
            log = KafkaLog(LogSettings(bootstrap_servers=address), session_timeout=3)
        opened.append(log)
        return log

    yield open_one
    for log in opened:
        log.close()


class Flaky:
    """Every 20th event fails until it was called often enough, every 300th always."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.done: defaultdict[str, list[int]] = defaultdict(list)
        self._lock = threading.Lock()

    def __call__(self, event: Event, record: StoredRecord) -> None:
        number = int(event.id.removeprefix("e"))
        with self._lock:
            self.calls[event.id] += 1
            if number % 300 == 0 or (number % 20 == 0 and self.calls[event.id] < 4):
                raise ValueError(f"{event.id} fails")
            self.done[record.key].append(number)


def send(log: EventLog, topic: str, numbers: range) -> None:
    events = [
        Event(
            id=f"e{number}",
            data=InteractionRecorded(
                interaction_id=f"i{number}",
                conversation_id=f"c{number % KEYS}",
                prompt="p",
                response="r",
                finish_reason="stop",
            ),
        )
        for number in numbers
    ]
    log.append(topic, [encode(event) for event in events])


@pytest.mark.timeout(600)
def test_what_fails_for_a_while_is_handled_in_order_whoever_owns_it(
    open_log: Callable[[], EventLog], scale: Callable[[int, int], int]
):
    log, topic, group, total = open_log(), f"t.{new_id()}", f"g{new_id()}", scale(900, 9000)
    log.ensure_topics([topic])
    handler = Flaky()
    members: list[tuple[threading.Event, threading.Thread]] = []

    def join() -> None:
        stop = threading.Event()
        consumer = Consumer(open_log(), group, {topic: handler}, retries=1, backoff=0.001, delays=DELAYS)
        members.append((stop, threading.Thread(target=consumer.run, args=(stop,), daemon=True)))
        members[-1][1].start()

    def leave() -> None:
        stop, thread = members.pop(0)
        stop.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()

    join()
    for part in range(6):
        send(log, topic, range(part * total // 6, (part + 1) * total // 6))
        time.sleep(0.3)
        (join if part % 2 == 0 else leave)()
    deadline = time.monotonic() + PATIENCE
    beside = retry_topic(topic, group)
    while lag(log, group, topic) or lag(log, group, beside):
        assert time.monotonic() < deadline, (lag(log, group, topic), lag(log, group, beside))
        time.sleep(0.05)
    while members:
        leave()
    dead = {letter.origin_offset for letter in dead_letters(log, topic)}
    hopeless = len(range(0, total, 300))
    again = sum(map(len, handler.done.values())) - (total - hopeless)
    print(f"\n{total} events, {sum(handler.calls.values())} calls, {len(dead)} dead letters, {again} handled twice")
    assert len(dead) == hopeless
    assert {number for line in handler.done.values() for number in line} == {n for n in range(total) if n % 300}
    for key, line in handler.done.items():
        first_times = list(dict.fromkeys(line))
        assert first_times == sorted(first_times), key
