"""The event log on Apache Kafka 2.5 or newer.

Appends go through one idempotent producer (acks=all, zstd): a retry inside the client never doubles a record.
Groups use Kafka's own protocol with cooperative rebalancing, and readers see what was committed only.
"""

from __future__ import annotations

import time as clock
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from infra.settings import LogSettings
from streams.events import COMPACTED
from streams.kafka_client import (
    DELIVERY_SECONDS,
    MAX_BATCH_BYTES,
    Cluster,
    GroupIdNotFoundError,
    KafkaError,
    OffsetAndMetadata,
    OffsetSpec,
    TopicPartition,
)
from streams.kafka_group import EPOCH, KafkaReader, stored
from streams.log import MAX_POLL_INTERVAL, SESSION_TIMEOUT, GroupReader, Record, StoredRecord, check_appendable


class KafkaLog:
    """`EventLog` on the cluster that the settings name. Connects at first use. Safe for threads and forks."""

    def __init__(
        self,
        settings: LogSettings,
        *,
        session_timeout: float = SESSION_TIMEOUT,
        max_poll_interval: float = MAX_POLL_INTERVAL,
    ) -> None:
        self._settings = settings
        self._cluster = Cluster(settings)
        self._session_timeout = session_timeout
        self._max_poll_interval = max_poll_interval
        self._known: set[str] = set()

    def ensure_topics(self, topics: Sequence[str]) -> None:
        """See `EventLog`. Replication is the cluster's default; an existing topic is left as it is."""
        for topic in topics:
            check_appendable(topic, [])
        new = [topic for topic in topics if topic not in self._known]
        if not new:
            return
        self._cluster.create({topic: self._layout(topic) for topic in new})
        self._known.update(new)

    def append(self, topic: str, records: Sequence[Record]) -> list[tuple[int, int]]:
        """See `EventLog`."""
        check_appendable(topic, records)
        self.ensure_topics([topic])
        with self._cluster.reaching():
            producer = self._cluster.producer()
            sent = [
                producer.send(topic, record.value, key=record.key.encode(), headers=list(record.headers))
                for record in records
            ]
            producer.flush(timeout=DELIVERY_SECONDS * 2)
            done = [future.get(timeout=DELIVERY_SECONDS) for future in sent]
        return [(metadata.partition, metadata.offset) for metadata in done]

    def read(self, topic: str, partition: int, offset: int, *, limit: int = 1000) -> list[StoredRecord]:
        """See `EventLog`."""
        end = self.end_offsets(topic).get(partition, 0)
        where = TopicPartition(topic, partition)
        found: list[StoredRecord] = []
        deadline = clock.monotonic() + DELIVERY_SECONDS
        with self._cluster.lock(), self._cluster.reaching():
            if offset >= end:
                return []
            consumer = self._cluster.reader()
            consumer.assign([where])
            consumer.seek(where, offset)
            # The end may hold no record (compaction leaves gaps), so it is the position that says when to stop.
            while len(found) < limit and consumer.position(where) < end:
                batch = consumer.poll(timeout_ms=500, max_records=limit - len(found))
                found += [stored(record) for record in batch.get(where, [])]
                if clock.monotonic() > deadline:
                    if not found:
                        raise KafkaError(f"no record of {topic}/{partition} came within {DELIVERY_SECONDS:.0f} s")
                    break
        return found

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
        return {each.partition: max(0, found[each].offset) if each in found else 0 for each in where}

    def join(self, group: str, topics: Sequence[str]) -> GroupReader:
        """See `EventLog`."""
        self.ensure_topics(topics)
        with self._cluster.reaching():
            consumer = self._cluster.member(
                group, topics, session_timeout=self._session_timeout, max_poll=self._max_poll_interval
            )
        return KafkaReader(
            consumer, group, self._cluster, ensure_topics=self.ensure_topics, transaction_timeout=self._session_timeout
        )

    def close(self) -> None:
        """See `EventLog`."""
        self._cluster.close()

    def _offsets(self, topic: str, spec: int) -> dict[int, int]:
        where = {TopicPartition(topic, number): spec for number in range(self.partitions(topic))}
        if not where:
            return {}
        found = self._cluster.ask(lambda admin: admin.list_partition_offsets(where))
        return {each.partition: found[each].offset for each in sorted(where)}

    def _layout(self, topic: str) -> dict[str, Any]:
        configs = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": str(MAX_BATCH_BYTES)}
        if topic in COMPACTED:
            configs |= {"cleanup.policy": "compact", "retention.ms": "-1"}
        elif topic.endswith(".dlq"):
            configs |= {"retention.ms": "-1"}  # dead letters wait for a person
        return {"num_partitions": self._settings.partitions, "configs": configs}
