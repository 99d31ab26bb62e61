"""Dead letters are listed and sent again the same way on the embedded log and on Kafka."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from infra.errors import InputError, NotFound
from infra.identity import new_id
from infra.settings import LogSettings
from streams.dead_letters import (
    MAX_REASON,
    dead_letter_topic,
    dead_letters,
    find_letters,
    letter_of,
    original,
    read_letter,
    replay,
)
from streams.embedded import EmbeddedLog
from streams.kafka import KafkaLog
from streams.log import MAX_RECORD_BYTES, EventLog, Record, StoredRecord

RECORD = Record(key="k", value=b"\xff\x00 raw", headers=(("ce_id", b"e"), ("x", b"\xfe"), ("dlq_error", b"theirs")))


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EventLog]:
    if request.param == "embedded":
        log: EventLog = EmbeddedLog(tmp_path / "log.db")
    else:
        log = KafkaLog(LogSettings(bootstrap_servers=request.getfixturevalue("kafka_broker").address))
    yield log
    log.close()


@pytest.fixture
def topic() -> str:
    return f"t.{new_id()}"


def bury(log: EventLog, topic: str, record: Record = RECORD, error: str = "poison ü") -> None:
    """Append a record to its topic, and its letter to the dead letters."""
    ((partition, offset),) = log.append(topic, [record])
    (stored,) = log.read(topic, partition, offset, limit=1)
    log.append(dead_letter_topic(topic), [letter_of(stored, ValueError(error), 4)])


def everything(log: EventLog, topic: str) -> list[StoredRecord]:
    return [each for partition in log.end_offsets(topic) for each in log.read(topic, partition, 0)]


def plain(record: Record) -> Record:
    return Record(key=record.key, value=record.value, headers=record.headers)


def test_a_topic_without_dead_letters_has_none(log: EventLog, topic: str):
    assert dead_letters(log, topic) == []
    assert find_letters(log, [topic]) == []
    assert log.partitions(dead_letter_topic(topic)) == 0


def test_a_letter_says_where_it_came_from_and_why(log: EventLog, topic: str):
    bury(log, topic)
    (letter,) = dead_letters(log, topic)
    (source,) = everything(log, topic)
    assert (letter.key, letter.size, letter.error, letter.attempts) == ("k", 6, "ValueError: poison ü", 4)
    assert (letter.origin_partition, letter.origin_offset) == (source.partition, source.offset)
    assert letter.replayed_at is None
    assert find_letters(log, [letter.id, topic, letter.id]) == [letter]
    assert plain(original(read_letter(log, letter))) == RECORD


def test_what_is_replayed_comes_back_byte_for_byte_and_is_noted(log: EventLog, topic: str):
    for number in range(3):
        bury(log, topic, replace(RECORD, key=f"k{number}"))
    first, second, third = dead_letters(log, topic)
    partition, offset = replay(log, second)
    (again,) = log.read(topic, partition, offset, limit=1)
    assert plain(again) == replace(RECORD, key=second.key)
    noted = {letter.id: letter.replayed_at for letter in dead_letters(log, topic)}
    assert set(noted) == {first.id, second.id, third.id}
    assert noted[first.id] is None
    assert noted[second.id] is not None
    assert len(everything(log, topic)) == 4


def test_what_is_not_there_is_not_found(log: EventLog, topic: str):
    bury(log, topic)
    (letter,) = dead_letters(log, topic)
    for name in (f"{topic}/0/999", f"{topic}/x", f"{topic}/-1/{10**30}", f"{topic}/{letter.partition}"):
        with pytest.raises(NotFound, match="no such dead letter"):
            find_letters(log, [letter.id, name])
    with pytest.raises(NotFound, match="no longer"):
        read_letter(log, letter.model_copy(update={"offset": letter.offset + 5}))
    with pytest.raises(InputError, match="not a topic name"):
        find_letters(log, ["no topic"])


def test_a_record_that_a_stranger_put_there_can_be_replayed(log: EventLog, topic: str):
    log.append(dead_letter_topic(topic), [Record(key="k", value=b"v", headers=(("dlq_attempts", "²".encode()),))])
    (letter,) = dead_letters(log, topic)
    assert (letter.error, letter.attempts, letter.origin_offset) == ("", None, None)
    replay(log, letter)
    (stored,) = everything(log, topic)
    assert (stored.value, stored.headers) == (b"v", (("dlq_attempts", "²".encode()),))


def test_the_longest_record_has_a_letter_with_the_longest_reason(log: EventLog, topic: str):
    record = Record(key="k", value=b"\x01" * (MAX_RECORD_BYTES - 1))
    bury(log, topic, record, "🦙" * 100_000)
    (letter,) = dead_letters(log, topic)
    assert len(letter.error) == MAX_REASON
    partition, offset = replay(log, letter)
    assert log.read(topic, partition, offset, limit=1)[0].value == record.value
