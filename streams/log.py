"""The event-log protocol and its delivery guarantees, the same for the embedded log and for Kafka.

1. `append` returns after the records are durable: fsynced (embedded) or acknowledged by all in-sync replicas.
2. Records with one key land in one partition, in order. Offsets of a partition rise; gaps are allowed.
3. A consumer group reads each record at least once: the offset moves only with `commit`, so a crash between
   handling and commit delivers again. Effects must be idempotent by event id.
4. Each partition belongs to one live member of a group. A member that stops or dies frees its partitions for
   the others; a commit by a member that lost a partition raises `LostPartition`.
5. Reading by offset or time needs no group and disturbs none.
6. A record is at most `MAX_RECORD_BYTES` long, and a key lands in the partition that `partition_of` names: the
   limits of the narrower log hold for both, so what one takes the other takes too.
7. A group's retry topic (`retry_topic`) needs no member of its own: its partition n belongs to the member that owns
   partition n of the topic, who commits it as its own and reads it by offset.
8. Records go when their time is over or, on a compacted topic, when their key has a newer one (`streams.retention`),
   whether a group has read them or not. Reading from an offset that is gone goes on at the first record that is left.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from types import TracebackType
from typing import Protocol, Self

from infra.errors import InputError, QuillError

MAX_RECORD_BYTES = 16 << 20
MAX_REASON_BYTES = 16 << 10
"""How much longer a record of a dead-letter or retry topic may be, so that the longest one fits with its reason."""
SESSION_TIMEOUT = 10.0
"""Seconds after which a member that sent no heartbeat counts as dead. The log sends heartbeats by itself."""
MAX_POLL_INTERVAL = 600.0
"""Seconds a live process may take between two polls before its partitions go to the others: it hangs."""

MANY = 64
"""Keys from which on hashing them together is worth it."""
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")


class LostPartition(QuillError):
    """The group gave this partition to another member; what was not committed will be handled there."""


# Not pydantic values: one is made for each event that passes, and validating it would cost more than reading it.
@dataclass(frozen=True, slots=True)
class Record:
    """What is appended."""

    key: str
    """Partition key."""
    value: bytes
    """Encoded event, or raw bytes in a dead-letter topic."""
    headers: tuple[tuple[str, bytes], ...] = ()
    """CloudEvents attributes in binary mode."""


@dataclass(frozen=True, slots=True)
class StoredRecord(Record):
    """What is read back."""

    headers: tuple[tuple[str, bytes], ...]
    topic: str
    """Topic."""
    partition: int
    """Partition, ≥ 0."""
    offset: int
    """Position in the partition, ≥ 0."""
    time: datetime
    """When the log took it, UTC."""


class GroupReader(Protocol):
    """A live member of a consumer group."""

    def poll(self, *, max_records: int = 100, timeout: float = 1.0) -> list[StoredRecord]:
        """The next records of the partitions this member owns; empty after `timeout` seconds without any.

        Partitions change hands only inside `poll`, so what was committed before it is never handled twice.
        Heartbeats go out in the background: handling may take up to `MAX_POLL_INTERVAL` between two polls.
        """
        ...

    def commit(self, next_offsets: Mapping[tuple[str, int], int]) -> None:
        """Record (topic, partition) -> next offset to read.

        Raises `LostPartition`, and records nothing, when one of them belongs to another member by now.
        """
        ...

    def publish(self, outputs: Sequence[tuple[str, Record]], next_offsets: Mapping[tuple[str, int], int]) -> None:
        """Append the outputs (topic, record) and commit the offsets: both, or neither. Missing topics are created.

        Raises `LostPartition` as `commit` does, `InputError` as `append` does, and `Unavailable`, after which it is
        not known whether it was done: called again with the same arguments, it is not done twice. After
        `LostPartition` nothing was done; drop what was polled, because it comes again, here or at its new owner.
        """
        ...

    def assignment(self) -> set[tuple[str, int]]:
        """The partitions this member owns now."""
        ...

    def close(self) -> None:
        """Leave the group; its partitions go to the others at once."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class EventLog(Protocol):
    """Topics of partitions of records."""

    def ensure_topics(self, topics: Sequence[str]) -> None:
        """Create what is missing. Idempotent. Raises `Unavailable` when the log cannot be reached."""
        ...

    def append(self, topic: str, records: Sequence[Record]) -> list[tuple[int, int]]:
        """Append durably; (partition, offset) of each record, same order. A missing topic is created.

        Raises `Unavailable` (some of the records may have been appended) and `InputError` for a record that
        is too long or a topic with a name no log takes (none was appended).
        """
        ...

    def read(self, topic: str, partition: int, offset: int, *, limit: int = 1000) -> list[StoredRecord]:
        """Up to `limit` records of a partition from an offset on, without a group."""
        ...

    def partitions(self, topic: str) -> int:
        """Number of partitions of a topic (0 when it does not exist)."""
        ...

    def end_offsets(self, topic: str) -> dict[int, int]:
        """Partition to the offset that the next record will get."""
        ...

    def offsets_at(self, topic: str, time: datetime) -> dict[int, int]:
        """Partition to the offset of the first record at or after a time (the end offset when there is none)."""
        ...

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """Partition to the next offset a group will read: where it committed, or the first that is left after it."""
        ...

    def count(self, topic: str, partition: int, start: int, end: int) -> int:
        """About how many events lie between two offsets of a partition: their difference counts gaps too."""
        ...

    def join(self, group: str, topics: Sequence[str]) -> GroupReader:
        """Become a member of a consumer group. A new group starts at the beginning; missing topics are created."""
        ...

    def close(self) -> None:
        """Release connections and files."""
        ...


def lags(log: EventLog, group: str, topic: str) -> dict[int, int]:
    """Partition to the events that a group has not committed yet."""
    committed = log.committed(group, topic)
    return {
        number: log.count(topic, number, committed.get(number, 0), end)
        for number, end in log.end_offsets(topic).items()
    }


def events_in(log: EventLog, topic: str) -> int:
    """About how many events were ever appended to a topic."""
    return sum(log.count(topic, number, 0, end) for number, end in log.end_offsets(topic).items())


def lag(log: EventLog, group: str, topic: str) -> int:
    """Events of a topic that a group has not committed yet."""
    return sum(lags(log, group, topic).values())


def retry_topic(topic: str, group: str) -> str:
    """Where a group keeps records of a topic that it could not handle yet."""
    return f"{topic}.{group}.retry"


def owned_by_way_of(name: tuple[str, int], group: str) -> tuple[str, int]:
    """The partition whose owner in the group may commit `name`: itself, or that of its topic for a retry topic."""
    return name[0].removesuffix(retry_topic("", group)), name[1]


@lru_cache(1 << 14)
def partition_of(key: str, partitions: int) -> int:
    """The partition of a key among `partitions` (≥ 1): murmur2 of its UTF-8 bytes, as Kafka's clients do by default."""
    return (_murmur2(key.encode()) & 0x7FFFFFFF) % partitions


def partitions_of(keys: Sequence[str], partitions: int) -> list[int]:
    """`partition_of` of each key; of many keys at once in a tenth of the time."""
    if len(keys) < MANY:
        return [partition_of(key, partitions) for key in keys]
    by_length: dict[int, list[int]] = {}
    encoded = [key.encode() for key in keys]
    for index, data in enumerate(encoded):
        by_length.setdefault(len(data), []).append(index)
    found = [0] * len(keys)
    for length, indexes in by_length.items():
        if len(indexes) < MANY or length % 4 or not length:
            for index in indexes:
                found[index] = partition_of(keys[index], partitions)
        else:
            hashes = _murmur2_of_words(b"".join([encoded[index] for index in indexes]), length)
            for index, value in zip(indexes, hashes, strict=True):
                found[index] = (value & 0x7FFFFFFF) % partitions
    return found


def check_appendable(topic: str, records: Sequence[Record]) -> None:
    """Raise `InputError` for a topic name or a record that the logs do not take."""
    if not _TOPIC.fullmatch(topic):
        raise InputError("not a topic name", seen=topic, rule="1 to 249 of a-z A-Z 0-9 . _ -")
    limit = MAX_RECORD_BYTES + (MAX_REASON_BYTES if topic.endswith((".dlq", ".retry")) else 0)
    for record in records:
        size = len(record.key.encode()) + len(record.value)
        for name, value in record.headers:
            size += len(name) + len(value)
        if size > limit:
            raise InputError(f"a record for {topic} is too long", seen=f"{size} bytes", rule=f"at most {limit} bytes")


def _murmur2(data: bytes) -> int:
    # MurmurHash2, 32 bit, by Austin Appleby (public domain), with the seed Kafka's clients use.
    multiplier, mask = 0x5BD1E995, 0xFFFFFFFF
    value = 0x9747B28C ^ len(data)
    for word in struct.unpack_from(f"<{len(data) >> 2}I", data):
        mixed = word * multiplier & mask
        value = value * multiplier & mask ^ (mixed ^ mixed >> 24) * multiplier & mask
    if tail := data[len(data) & ~3 :]:
        value = (value ^ int.from_bytes(tail, "little")) * multiplier & mask
    value = (value ^ value >> 13) * multiplier & mask
    return value ^ value >> 15


def _murmur2_of_words(data: bytes, length: int) -> list[int]:
    """`_murmur2` of pieces of `length` bytes, a multiple of 4, that lie one after the other in `data`."""
    import numpy

    multiplier = numpy.uint32(0x5BD1E995)
    words = numpy.frombuffer(data, "<u4").reshape(-1, length // 4).T * multiplier
    words = (words ^ words >> numpy.uint32(24)) * multiplier
    value = numpy.full(words.shape[1], 0x9747B28C ^ length, numpy.uint32)
    for word in words:
        value = value * multiplier ^ word
    value = (value ^ value >> numpy.uint32(13)) * multiplier
    mixed: list[int] = (value ^ value >> numpy.uint32(15)).tolist()
    return mixed
