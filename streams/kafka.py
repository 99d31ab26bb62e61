"""The event log on Apache Kafka 2.5 or newer.

Appends go through one idempotent producer (acks=all, zstd): a retry inside the client never doubles a record.
Groups use Kafka's own protocol with cooperative rebalancing, and readers see what was committed only.
"""

from __future__ import annotations

import time as clock
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

from infra.settings import LogSettings
from streams.frames import FRAMABLE
from streams.kafka_client import (
    DELIVERY_SECONDS,
    Cluster,
    GroupIdNotFoundError,
    KafkaError,
    OffsetAndMetadata,
    OffsetSpec,
    TopicPartition,
)
from streams.kafka_group import KafkaReader, send
from streams.kafka_records import EPOCH, Layout
from streams.log import MAX_POLL_INTERVAL, SESSION_TIMEOUT, GroupReader, Record, StoredRecord, check_appendable

COUNT_SAMPLE = 500
"""Events that are read to tell how many lie in a longer stretch of a framable topic."""


class KafkaLog:
    """`EventLog` on the cluster that the settings name. Connects at first use. Safe for threads and forks.

    `framable` topics may hold frames, whoever wrote them, and have the offsets of `streams.frames`.
    """

    def __init__(
        self,
        settings: LogSettings,
        *,
        session_timeout: float = SESSION_TIMEOUT,
        max_poll_interval: float = MAX_POLL_INTERVAL,
        framable: Container[str] = FRAMABLE,
    ) -> None:
        self._cluster = Cluster(settings)
        self._layout = Layout(framable, settings.frames)
        self._session_timeout = session_timeout
        self._max_poll_interval = max_poll_interval

    def ensure_topics(self, topics: Sequence[str]) -> None:
        """See `EventLog`. Replication is the cluster's default; an existing topic is left as it is."""
        self._cluster.ensure(topics)

    def append(self, topic: str, records: Sequence[Record]) -> list[tuple[int, int]]:
        """See `EventLog`."""
        check_appendable(topic, records)
        self.ensure_topics([topic])
        places = [(0, 0)] * len(records)
        with self._cluster.reaching(), self._cluster.producing() as producer:
            sent = send(producer, self._layout, topic, records)
            producer.flush(timeout=DELIVERY_SECONDS * 2)
            for sending, future in sent:
                # The events of a record have the last of its offsets.
                end = self._layout.offset(topic, future.get(timeout=DELIVERY_SECONDS).offset + 1)
                for offset, index in enumerate(sending.indexes, end - len(sending.indexes)):
                    places[index] = (sending.partition, offset)
        return places

    def read(self, topic: str, partition: int, offset: int, *, limit: int = 1000) -> list[StoredRecord]:
        """See `EventLog`. What an open transaction holds back is waited for, or undone, before this returns."""
        end = self.end_offsets(topic).get(partition, 0)
        where = TopicPartition(topic, partition)
        found: list[StoredRecord] = []
        deadline = clock.monotonic() + DELIVERY_SECONDS
        with self._cluster.lock(), self._cluster.reaching():
            if offset >= end:
                return []
            consumer = self._cluster.reader()
            consumer.assign([where])
            consumer.seek(where, self._layout.position(topic, offset)[0])
            # The end may hold no record (compaction leaves gaps), so it is the position that says when to stop.
            while len(found) < limit and self._layout.offset(topic, consumer.position(where)) < end:
                batch = consumer.poll(timeout_ms=500, max_records=limit - len(found))
                for record in batch.get(where, []):
                    found += self._layout.incoming(record, offset)
                if clock.monotonic() > deadline:
                    if not found:
                        raise KafkaError(f"no record of {topic}/{partition} came within {DELIVERY_SECONDS:.0f} s")
                    break
        return found[:limit]

    def partitions(self, topic: str) -> int:
        """See `EventLog`."""
        described = self._cluster.ask(lambda admin: admin.describe_topics([topic]))
        return len(described[0]["partitions"]) if described and not described[0]["error_code"] else 0

    def end_offsets(self, topic: str) -> dict[int, int]:
        """See `EventLog`."""
        return self._offsets(topic, OffsetSpec.LATEST)

    def offsets_at(self, topic: str, time: datetime) -> dict[int, int]:
        """See `EventLog`; Kafka keeps milliseconds, so records of the same millisecond count as at the time."""
        found = self._offsets(topic, max(0, (time - EPOCH) // timedelta(milliseconds=1)))
        if any(offset < 0 for offset in found.values()):
            ends = self.end_offsets(topic)
            found = {number: offset if offset >= 0 else ends[number] for number, offset in found.items()}
        return found

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """See `EventLog`."""
        where = [TopicPartition(topic, number) for number in range(self.partitions(topic))]
        found: Mapping[TopicPartition, OffsetAndMetadata] = {}
        with suppress(GroupIdNotFoundError):
            found = self._cluster.ask(lambda admin: admin.list_group_offsets({group: where})[group]) if where else {}
        known = {each.partition: found[each] for each in where if each in found and found[each].offset >= 0}
        committed = {
            number: self._layout.offset(topic, place.offset, place.metadata or "") for number, place in known.items()
        }
        starts = self._offsets(topic, OffsetSpec.EARLIEST)
        return {number: max(start, committed.get(number, 0)) for number, start in starts.items()}

    def count(self, topic: str, partition: int, start: int, end: int) -> int:
        """See `EventLog`. In a framable topic more than `COUNT_SAMPLE` events are told from the first of them."""
        if start >= end or self._layout.slots(topic) == 1:
            return max(0, end - start)
        sample = self.read(topic, partition, start, limit=COUNT_SAMPLE)
        if len(sample) < COUNT_SAMPLE:
            return len(sample)
        return round(len(sample) * (end - sample[0].offset) / (sample[-1].offset + 1 - sample[0].offset))

    def join(self, group: str, topics: Sequence[str]) -> GroupReader:
        """See `EventLog`."""
        self.ensure_topics(topics)
        with self._cluster.reaching():
            consumer = self._cluster.member(
                group, session_timeout=self._session_timeout, max_poll=self._max_poll_interval
            )
            return KafkaReader(
                consumer, group, topics, self._cluster, self._layout, transaction_timeout=self._session_timeout
            )

    def close(self) -> None:
        """See `EventLog`."""
        self._cluster.close()

    def _offsets(self, topic: str, spec: int) -> dict[int, int]:
        where = {TopicPartition(topic, number): spec for number in range(self.partitions(topic))}
        if not where:
            return {}
        found = self._cluster.ask(lambda admin: admin.list_partition_offsets(where))
        return {each.partition: self._layout.offset(topic, found[each].offset) for each in sorted(where)}
