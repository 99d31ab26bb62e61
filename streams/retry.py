"""Retry topics: records that a group could not handle yet, kept beside their topic until their time comes.

`<topic>.<group>.retry` is the durable form of what waits in memory here. Its partition n holds what waits of
partition n of the topic, and only the owner of that appends to it, so the owner reads it once, when it takes the
partition over. A record that failed again is appended anew with its next time; the copy before it is then done. What
is committed is the place before which nothing waits any more.

A record of which an earlier one with the same key waits must wait behind it: a key's records keep their order.
"""

from __future__ import annotations

import bisect
import itertools
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache

from infra.errors import Conflict
from streams.log import EventLog, Record, StoredRecord, partition_of, retry_topic

DELAYS = (5.0, 30.0, 300.0)
"""Seconds before the first, second and third retry: a deployment, a restart, an outage of what the handler needs."""
MAX_WAITING = 1000
MAX_WAITING_BYTES = 64 << 20
"""What may wait of one partition; with more it is not read on before some of it is done, 335 s at the latest."""
LOOK_SECONDS = 30.0
_HEADERS = (
    "retry_key",
    "retry_partition",
    "retry_offset",
    "retry_time",
    "retry_attempts",
    "retry_stage",
    "retry_due",
    "retry_error",
)
_log = logging.getLogger(__name__)

Partition = tuple[str, int]


@dataclass(slots=True, eq=False)
class Delivery:
    """A record on its way to its handler, for the first time or again."""

    record: StoredRecord
    """As it came on its topic."""
    failed: int = 0
    """How often a handler failed on it."""
    stage: int = 0
    """How often it was put off because it failed."""
    due: float = 0.0
    """When it is handled again, seconds since 1970; 0 is as soon as no earlier record of its key waits."""
    error: str = ""
    """Why it failed last."""
    place: tuple[int, int] | None = None
    """Its newest partition and offset in the retry topic; None while it is not there."""

    @property
    def partition(self) -> Partition:
        """The partition whose owner handles it."""
        return self.record.topic, self.place[0] if self.place else self.record.partition

    @property
    def order(self) -> tuple[int, int]:
        """Where it came from: what tells records apart, and their order."""
        return self.record.partition, self.record.offset


class Room:
    """What waits of one partition, each key's records in the order of the topic."""

    def __init__(self, committed: int) -> None:
        self.committed = committed
        self.end = committed
        """The retry topic is known up to here."""
        self._by_key: dict[str, list[Delivery]] = {}
        self._by_order: dict[tuple[int, int], Delivery] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._by_order)

    @property
    def full(self) -> bool:
        return len(self) >= MAX_WAITING or self._bytes >= MAX_WAITING_BYTES

    def of_key(self, key: str) -> Sequence[Delivery]:
        """What waits of a key, earliest first."""
        return self._by_key.get(key, ())

    def holds(self, delivery: Delivery) -> bool:
        """The record waits here already, in this delivery or another."""
        return delivery.order in self._by_order

    def add(self, delivery: Delivery) -> None:
        """Let it wait; a newer copy of a record takes the place of the older one."""
        if self.holds(delivery):
            self.remove(self._by_order[delivery.order])
        self._by_order[delivery.order] = delivery
        line = self._by_key.setdefault(delivery.record.key, [])
        bisect.insort(line, delivery, key=lambda each: each.order)
        self._bytes += len(delivery.record.value)

    def remove(self, delivery: Delivery) -> None:
        """It is done. Nothing happens when it did not wait here."""
        if self._by_order.get(delivery.order) is not delivery:
            return
        del self._by_order[delivery.order]
        line = self._by_key[delivery.record.key]
        line.remove(delivery)
        if not line:
            del self._by_key[delivery.record.key]
        self._bytes -= len(delivery.record.value)

    def heads(self) -> Iterable[Delivery]:
        """The earliest record of each key."""
        return (line[0] for line in self._by_key.values())

    def due(self, now: float) -> Iterable[Delivery]:
        """What may be handled now: of each key the first ones, up to one whose time has not come."""
        for line in self._by_key.values():
            yield from itertools.takewhile(lambda each: each.due <= now, line)

    def done_up_to(self) -> int:
        """The place in the retry topic before which nothing waits."""
        places = [each.place[1] for each in self._by_order.values() if each.place is not None]
        return min(places, default=self.end)


class Retries:
    """What waits of the partitions that one member owns. Without delays nothing ever waits."""

    def __init__(self, log: EventLog, group: str, topics: Iterable[str], delays: Sequence[float]) -> None:
        self._events = log
        self._group = group
        self._topics = sorted(topics)
        self._delays = tuple(delays)
        self._rooms: dict[Partition, Room] = {}
        self._partitions: dict[str, int] = {}
        self._looked = time.monotonic()

    def open(self) -> None:
        """Create the retry topics. Raises `Conflict` when one has too few partitions."""
        if not self._delays:
            return
        self._events.ensure_topics([retry_topic(topic, self._group) for topic in self._topics])
        for topic in self._topics:
            name = retry_topic(topic, self._group)
            wanted, found = self._events.partitions(topic), self._events.partitions(name)
            if found < wanted:
                raise Conflict(
                    f"{name} has fewer partitions than {topic}", seen=found, rule=f"at least {wanted}", fix="add some"
                )
            self._partitions[topic] = found

    def own(self, assigned: Iterable[Partition]) -> None:
        """Know what waits of the partitions that the member owns now, and forget the others."""
        if not self._delays:
            return
        owned = set(assigned)
        self._forget_changed()
        for partition in self._rooms.keys() - owned:
            del self._rooms[partition]
        for topic in sorted({topic for topic, _ in owned - self._rooms.keys()}):
            self._load(topic, [number for name, number in owned - self._rooms.keys() if name == topic])

    def forget(self, partition: Partition) -> None:
        """Read what waits anew before the partition is worked on again: another member may have owned it."""
        self._rooms.pop(partition, None)

    def room(self, delivery: Delivery) -> Room | None:
        """Where the delivery would wait; None without delays."""
        return self._rooms.get(delivery.partition)

    def full(self, partition: Partition) -> bool:
        """So much waits that the partition must not be read on."""
        room = self._rooms.get(partition)
        return room is not None and room.full

    def delay(self, delivery: Delivery) -> float | None:
        """Seconds until the next retry of what failed; None when it had its last."""
        return self._delays[delivery.stage] if delivery.stage < len(self._delays) else None

    def waiting(self) -> int:
        """Number of records that wait. Any thread may ask."""
        return sum(len(room) for room in list(self._rooms.values()))

    def due(self, limit: int) -> list[Delivery]:
        """Up to `limit` records whose time has come, those of a partition in order."""
        now = time.time()
        found = itertools.islice((each for room in self._rooms.values() for each in room.due(now)), limit)
        return sorted(found, key=lambda each: (each.partition, each.order))

    def seconds(self, longest: float) -> float:
        """Seconds until something is due, at most `longest`."""
        first = min((head.due for room in self._rooms.values() for head in room.heads()), default=float("inf"))
        return min(longest, max(0.0, first - time.time()))

    def to_record(self, delivery: Delivery) -> tuple[str, Record]:
        """Retry topic and record of what waits."""
        topic, number = delivery.partition
        return retry_topic(topic, self._group), _to_record(delivery, _lane(number, self._partitions[topic]))

    def placed(self, delivery: Delivery, place: tuple[int, int]) -> None:
        """It is in the retry topic, in this partition at this offset."""
        room = self._rooms.get(delivery.partition)
        if room is not None and place == (delivery.partition[1], room.end):
            room.end += 1
        else:
            # A member that had the partition before or between us appended, or the topic grew: all is in the topic.
            self.forget(delivery.partition)
        delivery.place = place

    def positions(self) -> dict[Partition, int]:
        """What has moved since the last commit: partition of a retry topic to the place it may be committed at."""
        moved = {}
        for (topic, number), room in self._rooms.items():
            done = room.done_up_to()
            if done > room.committed:
                moved[retry_topic(topic, self._group), number] = done
        return moved

    def committed(self, positions: Mapping[Partition, int]) -> None:
        """These positions, and others of no interest here, are committed."""
        for (topic, number), room in self._rooms.items():
            room.committed = positions.get((retry_topic(topic, self._group), number), room.committed)

    def _forget_changed(self) -> None:
        """What appeared without us: a member that had the partition in between is noticed in `LOOK_SECONDS`."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        for topic in self._topics:
            ends = self._events.end_offsets(retry_topic(topic, self._group))
            self._partitions[topic] = len(ends)
            for (name, number), room in list(self._rooms.items()):
                if name == topic and ends.get(number, 0) != room.end:
                    self.forget((name, number))
        self._looked = time.monotonic()

    def _load(self, topic: str, numbers: Sequence[int]) -> None:
        name = retry_topic(topic, self._group)
        committed, ends = self._events.committed(self._group, name), self._events.end_offsets(name)
        for number in numbers:
            room = Room(committed.get(number, 0))
            while room.end < ends.get(number, 0):
                records = self._events.read(name, number, room.end, limit=500)
                for record in records:
                    room.add(_from_record(record, topic))
                room.end = records[-1].offset + 1 if records else ends[number]
            self._rooms[topic, number] = room
            if len(room):
                _log.info("%d records of %s/%d wait for a retry", len(room), topic, number)


def _to_record(delivery: Delivery, key: str) -> Record:
    record = delivery.record
    texts = (
        record.key,
        str(record.partition),
        str(record.offset),
        record.time.isoformat(),
        str(delivery.failed),
        str(delivery.stage),
        repr(delivery.due),
        delivery.error,
    )
    ours = tuple((name, text.encode("utf-8", "replace")) for name, text in zip(_HEADERS, texts, strict=True))
    return Record(key=key, value=record.value, headers=record.headers + ours)


def _from_record(record: StoredRecord, topic: str) -> Delivery:
    size = len(_HEADERS)
    key, partition, offset, moment, failed, stage, due, error = (value.decode() for _, value in record.headers[-size:])
    came = StoredRecord(
        key=key,
        value=record.value,
        headers=record.headers[:-size],
        topic=topic,
        partition=int(partition),
        offset=int(offset),
        time=datetime.fromisoformat(moment),
    )
    return Delivery(came, int(failed), int(stage), float(due), error, place=(record.partition, record.offset))


@cache
def _lane(partition: int, partitions: int) -> str:
    """A key that lands in a partition: foreign producers may have put the record's own key where its hash is not."""
    return next(key for number in itertools.count() if partition_of(key := f"{number}", partitions) == partition)
