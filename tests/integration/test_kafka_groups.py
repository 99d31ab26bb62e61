"""What members of a group do when the cluster answers late or not at all, on a real broker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kafka import KafkaConsumer
from kafka.errors import KafkaConnectionError, RebalanceInProgressError

from infra.errors import Unavailable
from infra.identity import new_id
from infra.kafka_broker import KafkaBroker
from infra.settings import LogSettings
from streams.kafka import KafkaLog
from streams.log import GroupReader, Record, lag

pytestmark = pytest.mark.kafka


@pytest.fixture
def topic() -> str:
    return f"t.{new_id()}"


@pytest.fixture
def log(kafka_broker: KafkaBroker, topic: str) -> Iterator[KafkaLog]:
    settings = LogSettings(bootstrap_servers=kafka_broker.address, frames=True)
    log = KafkaLog(settings, framable=frozenset({topic}))
    yield log
    log.close()


def failing(monkeypatch: pytest.MonkeyPatch, method: str, error: type[Exception], times: int = 1) -> list[int]:
    """Let a method of the client fail for the first calls; the list grows with each."""
    failed: list[int] = []
    plain: Any = getattr(KafkaConsumer, method)

    def call(self: KafkaConsumer, *arguments: Any, **named: Any) -> Any:
        if len(failed) < times:
            failed.append(1)
            raise error("as the test wants it")
        return plain(self, *arguments, **named)

    monkeypatch.setattr(KafkaConsumer, method, call)
    return failed


def read(reader: GroupReader, number: int) -> list[str]:
    found: list[str] = []
    while len(found) < number:
        try:
            found += [each.value.decode() for each in reader.poll(timeout=1.0)]
        except Unavailable:
            continue
    return found


def test_what_was_read_when_an_answer_failed_is_handed_out_later(
    log: KafkaLog, topic: str, monkeypatch: pytest.MonkeyPatch
):
    sent = [f"{index:03}" for index in range(300)]
    log.append(topic, [Record(text[-1], text.encode()) for text in sent])
    failed = failing(monkeypatch, "committed", KafkaConnectionError, 5)
    with log.join(new_id(), [topic]) as reader:
        assert sorted(read(reader, 300)) == sent
    assert len(failed) == 5


def test_a_commit_during_a_rebalance_is_made_up_for_and_overwrites_no_later_one(
    log: KafkaLog, topic: str, monkeypatch: pytest.MonkeyPatch
):
    ((partition, first), (_, second)) = log.append(topic, [Record("k", b"a"), Record("k", b"b")])
    group, name = new_id(), (topic, partition)
    with log.join(group, [topic]) as reader:
        assert read(reader, 2) == ["a", "b"]
        failed = failing(monkeypatch, "commit", RebalanceInProgressError)
        reader.commit({name: first + 1})
        assert failed == [1]
        assert lag(log, group, topic) == 2
        reader.poll(timeout=0.1)
        assert lag(log, group, topic) == 1
        failing(monkeypatch, "commit", RebalanceInProgressError)
        reader.commit({name: first + 1})
        reader.publish([(f"{topic}.out", Record("k", b"c"))], {name: second + 1})
        reader.poll(timeout=0.1)
        assert lag(log, group, topic) == 0


def test_a_commit_that_was_late_is_made_at_the_end(log: KafkaLog, topic: str, monkeypatch: pytest.MonkeyPatch):
    ((partition, offset),) = log.append(topic, [Record("k", b"a")])
    group = new_id()
    with log.join(group, [topic]) as reader:
        read(reader, 1)
        failing(monkeypatch, "commit", RebalanceInProgressError)
        reader.commit({(topic, partition): offset + 1})
    assert lag(log, group, topic) == 0
