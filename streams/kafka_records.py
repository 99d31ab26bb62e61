"""How records and offsets of ours lie in Kafka: one to one, except in framable topics (see `streams.frames`)."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from streams.frames import FRAMABLE, SLOTS, frames_of, pack, unpack
from streams.log import Record, StoredRecord, partitions_of

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Sending(NamedTuple):
    """A record as Kafka takes it, and which of the given records it holds."""

    partition: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    indexes: Sequence[int]


@dataclass(frozen=True)
class Layout:
    """Which topics may hold frames, and whether frames are written to them."""

    framable: Container[str] = FRAMABLE
    writes_frames: bool = False

    def slots(self, topic: str) -> int:
        """Offsets that a record of a topic takes."""
        return SLOTS if topic in self.framable else 1

    def offset(self, topic: str, position: int, metadata: str = "") -> int:
        """Our offset for a position of Kafka, and for an offset committed there with its metadata."""
        slots = self.slots(topic)
        index = int(metadata) if slots > 1 and metadata.isascii() and metadata.isdigit() and len(metadata) < 5 else 0
        return position * slots + min(index, slots - 1)

    def position(self, topic: str, offset: int) -> tuple[int, str]:
        """Kafka's position of our offset, and the metadata to commit with it: how much of a frame is done."""
        position, index = divmod(offset, self.slots(topic))
        return position, str(index) if index else ""

    def outgoing(self, topic: str, records: Sequence[Record], partitions: int) -> Iterator[Sending]:
        """The records to send for these, in an order that keeps that of each partition."""
        numbers = partitions_of([record.key for record in records], partitions)
        if not self.writes_frames or topic not in self.framable:
            for index, (record, partition) in enumerate(zip(records, numbers, strict=True)):
                yield _single(partition, record, index)
            return
        shares: dict[int, list[int]] = {}
        for index, partition in enumerate(numbers):
            shares.setdefault(partition, []).append(index)
        for partition, indexes in shares.items():
            done = 0
            for run in frames_of([records[index] for index in indexes]):
                held = indexes[done : done + len(run)]
                done += len(run)
                if len(run) == 1:
                    yield _single(partition, run[0], held[0])
                else:
                    frame = pack(run)
                    yield Sending(partition, None, frame.value, list(frame.headers), held)

    def incoming(self, record: Any, start: int = 0) -> list[StoredRecord]:
        """The events of a record of the client that lie at `start` or after it, by our offsets."""
        headers = tuple([(name, value or b"") for name, value in record.headers or ()])
        # Foreign producers may leave key or value out, or send keys of any bytes.
        whole = (record.key or b"").decode("utf-8", "replace"), record.value or b"", headers
        topic, partition, time = record.topic, record.partition, _time(max(0, record.timestamp or 0))
        slots = self.slots(topic)
        if slots == 1:
            return [StoredRecord(*whole, topic, partition, record.offset, time)]
        events = unpack(Record(*whole))
        return [
            StoredRecord(key, value, its_headers, topic, partition, offset, time)
            for offset, (key, value, its_headers) in enumerate(events, (record.offset + 1) * slots - len(events))
            if offset >= start
        ]


@lru_cache(1000)
def _time(milliseconds: int) -> datetime:
    # The broker stamps a whole batch at once, so that few of them differ.
    return EPOCH + timedelta(milliseconds=milliseconds)


def _single(partition: int, record: Record, index: int) -> Sending:
    # Without a value it is Kafka's tombstone, as it is one to the embedded log's compaction.
    return Sending(partition, record.key.encode(), record.value or None, list(record.headers), (index,))
