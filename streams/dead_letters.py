"""Dead letters: records that could not be handled, kept as they came with the reason, and sent again on request.

A letter lies in `<topic>.dlq`: key, bytes and headers as they came, and after them the headers of `letter_of`. That it
was sent again is noted in the same topic, as a record of its own, so that all processes see it on either log.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from pydantic import Field

from infra.errors import NotFound
from infra.identity import Value
from streams.log import EventLog, Record, StoredRecord, check_appendable

MAX_REASON = 2000
"""Characters of an error that are kept."""
BATCH = 100
"""Records per read: 100 of 10 MB is what a process may hold for a moment."""
_ERROR = "dlq_error"
_REPLAYED = "dlq_replayed"
_REPLAYED_TO = "dlq_replayed_to"


class DeadLetter(Value):
    """A record that was put aside."""

    topic: str = Field(description="Topic it came on.")
    partition: int = Field(ge=0, description="Partition of the dead-letter topic.")
    offset: int = Field(ge=0, description="Position there.")
    time: datetime = Field(description="When it was put aside, UTC.")
    key: str = Field(description="Partition key.")
    size: int = Field(ge=0, description="Length of its value, bytes.")
    error: str = Field(description="Why it could not be handled; empty when a stranger put it there.")
    attempts: int | None = Field(description="How often it was tried, if that was noted.")
    origin_partition: int | None = Field(description="Partition it came on, if that was noted.")
    origin_offset: int | None = Field(description="Its offset there, if that was noted.")
    replayed_at: datetime | None = Field(None, description="When it was last sent again, UTC; None is never.")

    @property
    def id(self) -> str:
        """Topic, partition and offset: what the command line calls it."""
        return f"{self.topic}/{self.partition}/{self.offset}"


def dead_letter_topic(topic: str) -> str:
    """Where records of a topic go that cannot be handled."""
    return f"{topic}.dlq"


def reason_of(error: Exception) -> str:
    """Kind and text of an error, at most `MAX_REASON` characters."""
    return f"{type(error).__name__}: {error}"[:MAX_REASON]


def letter_of(record: StoredRecord, error: Exception, attempts: int) -> Record:
    """The dead letter of a record: what it was, and why it could not be handled."""
    reason = {
        _ERROR: reason_of(error),
        "dlq_attempts": str(attempts),
        "dlq_topic": record.topic,
        "dlq_partition": str(record.partition),
        "dlq_offset": str(record.offset),
    }
    headers = tuple((name, text.encode("utf-8", "replace")) for name, text in reason.items())
    return Record(key=record.key, value=record.value, headers=record.headers + headers)


def original(letter: Record) -> Record:
    """The record that became this letter, byte for byte."""
    # Only the last one is ours: a stranger's record may have brought a header of this name.
    places = [index for index, (name, _) in enumerate(letter.headers) if name == _ERROR]
    headers = letter.headers[: places[-1]] if places else letter.headers
    return Record(key=letter.key, value=letter.value, headers=headers)


def dead_letters(log: EventLog, topic: str) -> list[DeadLetter]:
    """The dead letters of a topic, in the order in which they were put aside. None when it has no such topic."""
    check_appendable(topic, [])
    letters: list[DeadLetter] = []
    replayed: dict[str, datetime] = {}
    for record in _records(log, dead_letter_topic(topic)):
        if (place := _header(record, _REPLAYED)) and not record.value:
            replayed[f"{topic}/{place}"] = max(record.time, replayed.get(f"{topic}/{place}", record.time))
        else:
            letters.append(_letter(topic, record))
    letters.sort(key=lambda letter: (letter.time, letter.partition, letter.offset))
    return [letter.model_copy(update={"replayed_at": replayed.get(letter.id)}) for letter in letters]


def find_letters(log: EventLog, names: Sequence[str]) -> list[DeadLetter]:
    """The letters that are named: `TOPIC/PARTITION/OFFSET` is one, `TOPIC` all of a topic. Raises `NotFound`."""
    found: dict[str, DeadLetter] = {}
    listed: dict[str, list[DeadLetter]] = {}
    for name in names:
        topic = name.split("/", 1)[0]
        if topic not in listed:
            listed[topic] = dead_letters(log, topic)
        chosen = [letter for letter in listed[topic] if name in (topic, letter.id)]
        if not chosen and name != topic:
            raise NotFound("no such dead letter", seen=name, rule="TOPIC/PARTITION/OFFSET", fix="see quill dlq list")
        found |= {letter.id: letter for letter in chosen}
    return list(found.values())


def read_letter(log: EventLog, letter: DeadLetter) -> StoredRecord:
    """The record of a letter. Raises `NotFound` when the log keeps it no longer."""
    records = log.read(dead_letter_topic(letter.topic), letter.partition, letter.offset, limit=1)
    if not records or records[0].offset != letter.offset:
        raise NotFound("the log keeps this dead letter no longer", seen=letter.id, fix="see quill dlq list")
    return records[0]


def replay(log: EventLog, letter: DeadLetter) -> tuple[int, int]:
    """Append the original of a letter to its topic and note that; (partition, offset) of the new record.

    A crash between the two leaves it unnoted, and so does a second process at the same moment: then it may be sent
    twice, which handlers take, being idempotent by event id.
    """
    place = log.append(letter.topic, [original(read_letter(log, letter))])[0]
    marks = {_REPLAYED: f"{letter.partition}/{letter.offset}", _REPLAYED_TO: f"{place[0]}/{place[1]}"}
    headers = tuple((name, text.encode()) for name, text in marks.items())
    log.append(dead_letter_topic(letter.topic), [Record(key=letter.key, value=b"", headers=headers)])
    return place


def _records(log: EventLog, topic: str) -> Iterator[StoredRecord]:
    for partition, end in sorted(log.end_offsets(topic).items()):
        position = 0
        while position < end and (batch := log.read(topic, partition, position, limit=BATCH)):
            yield from batch
            position = batch[-1].offset + 1


def _letter(topic: str, record: StoredRecord) -> DeadLetter:
    return DeadLetter(
        topic=topic,
        partition=record.partition,
        offset=record.offset,
        time=record.time,
        key=record.key,
        size=len(record.value),
        error=_header(record, _ERROR),
        attempts=_number(record, "dlq_attempts"),
        origin_partition=_number(record, "dlq_partition"),
        origin_offset=_number(record, "dlq_offset"),
    )


def _header(record: Record, name: str) -> str:
    """The last header of a name, or an empty text."""
    return next((value.decode("utf-8", "replace") for each, value in reversed(record.headers) if each == name), "")


def _number(record: Record, name: str) -> int | None:
    text = _header(record, name)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
