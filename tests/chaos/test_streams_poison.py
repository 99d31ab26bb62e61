"""One record in a hundred is poison: each becomes a dead letter with its reason, and everything else is handled."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from infra.identity import new_id
from infra.settings import LogSettings, Settings
from store.opening import Store, open_store
from streams.codec import encode
from streams.consumer import Batched, Consumer
from streams.dead_letters import dead_letter_topic, dead_letters, original, read_letter, replay
from streams.embedded import EmbeddedLog
from streams.events import Event, InteractionRecorded
from streams.kafka import KafkaLog
from streams.log import EventLog, Record, StoredRecord, lag

GOOD = 990
POISON: dict[str, Callable[[dict], bytes]] = {
    "not JSON": lambda data: json.dumps(data).encode()[:-1],
    "huge": lambda data: json.dumps({**data, "extra": "x" * 10_000_000}).encode(),
    "deep": lambda data: b'{"a": ' * 10_000 + b"1" + b"}" * 10_000,
    "NUL": lambda data: json.dumps({**data, "prompt": "a\0b"}).encode(),
    "schema": lambda data: json.dumps({**data, "schema_version": 99}).encode(),
}
REASONS = {
    "not JSON": "the value is not JSON that can be stored; seen: Expecting",
    "huge": "breaks its contract; seen: llm.interaction.recorded.extra",
    "deep": "nested deeper than 64 levels",
    "NUL": "a text holds a NUL character",
    "schema": "unknown schema_version of llm.interaction.recorded; seen: 99",
}


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EventLog]:
    if request.param == "embedded":
        log: EventLog = EmbeddedLog(tmp_path / "log.db")
    else:
        log = KafkaLog(LogSettings(bootstrap_servers=request.getfixturevalue("kafka_broker").address))
    yield log
    log.close()


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    store = open_store(settings)
    yield store
    store.close()


def event(number: int) -> Event:
    data = InteractionRecorded(
        interaction_id=f"i{number}", conversation_id=f"c{number % 50}", prompt="p", response="r", finish_reason="stop"
    )
    return Event(id=f"e{number}", data=data)


def records() -> list[Record]:
    """The good ones with two poisoned ones of each kind among them."""
    kinds = [*POISON.values(), *POISON.values()]
    mixed = [encode(event(number)) for number in range(GOOD)]
    for number, spoil in enumerate(kinds):
        good = encode(event(GOOD + number))
        mixed.insert(99 * number, replace(good, value=spoil(json.loads(good.value))))
    return mixed


def consume(log: EventLog, topic: str, store: Store, *, broken: bool = False) -> None:
    def handle(events: Sequence[tuple[Event, StoredRecord]]) -> None:
        if broken and {event.id for event, _ in events}.intersection({"e7", "e8"}):
            raise ValueError("a mistake of ours")
        store.interactions.put_many([event for event, _ in events])

    consumer = Consumer(log, f"g.{topic}", {topic: Batched(handle)}, retries=1, backoff=0.001)
    consumer.run_until({topic: log.end_offsets(topic)}, 120)


def test_poison_stops_nothing_and_is_kept_with_its_reason(log: EventLog, store: Store):
    topic = f"t.{new_id()}"
    sent = records()
    log.append(topic, sent)
    consume(log, topic, store)
    assert lag(log, f"g.{topic}", topic) == 0
    assert store.interactions.count() == GOOD
    letters = dead_letters(log, topic)
    assert len(letters) == len(sent) - GOOD == len(sent) // 100
    found = Counter(kind for letter in letters for kind, reason in REASONS.items() if reason in letter.error)
    assert found == dict.fromkeys(POISON, 2)
    assert all(letter.error.startswith("UndecodableEvent: ") and letter.attempts == 1 for letter in letters)
    assert {original(read_letter(log, letter)).value for letter in letters} < {record.value for record in sent}


def test_what_a_mistake_of_ours_put_aside_is_handled_once_when_replayed(log: EventLog, store: Store):
    topic = f"t.{new_id()}"
    log.append(topic, [encode(event(number)) for number in range(20)])
    consume(log, topic, store, broken=True)
    assert store.interactions.count() == 18
    letters = dead_letters(log, topic)
    assert sorted(letter.error for letter in letters) == ["ValueError: a mistake of ours"] * 2
    for _ in range(2):
        for letter in letters:
            replay(log, letter)
        consume(log, topic, store)
        assert store.interactions.count() == 20
    assert all(letter.replayed_at for letter in dead_letters(log, topic))
    assert sum(log.end_offsets(topic).values()) == 24
    assert sum(log.end_offsets(dead_letter_topic(topic)).values()) == 6
