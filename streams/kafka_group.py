"""Consumer groups on Kafka: members, and their transactions of outputs and offsets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

from infra.identity import new_id
from streams.kafka_client import (
    DELIVERY_SECONDS,
    REACH_SECONDS,
    Cluster,
    CommitFailedError,
    ConsumerGroupMetadata,
    FencedInstanceIdError,
    KafkaConsumer,
    KafkaError,
    KafkaProducer,
    OffsetAndMetadata,
    RebalanceInProgressError,
    TopicPartition,
)
from streams.log import LostPartition, Record, StoredRecord, check_appendable, owned_by_way_of

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Offsets = Mapping[TopicPartition, OffsetAndMetadata]
Outputs = Sequence[tuple[str, Record]]


class KafkaReader:
    """`GroupReader` of Kafka. Use it from one thread at a time; heartbeats run in the client's own thread."""

    def __init__(
        self,
        consumer: KafkaConsumer,
        group: str,
        cluster: Cluster,
        *,
        ensure_topics: Callable[[Sequence[str]], None],
        transaction_timeout: float,
    ) -> None:
        self._consumer = consumer
        self._group = group
        self._cluster = cluster
        self._ensure_topics = ensure_topics
        self._transactions = Transactions(cluster, f"{group}.{new_id()}", transaction_timeout)
        self._rewind: set[TopicPartition] = set()
        # Next offset to hand out, and to commit, as far as this member moved them itself.
        self._handed: dict[TopicPartition, int] = {}
        self._committed: dict[TopicPartition, int] = {}

    def poll(self, *, max_records: int = 100, timeout: float = 1.0) -> list[StoredRecord]:
        """See `GroupReader`."""
        with self._cluster.reaching():
            self._go_back()
            batches = self._consumer.poll(timeout_ms=int(timeout * 1000), max_records=max_records)
            self._forget_lost()
            self._handed.update((where, records[-1].offset + 1) for where, records in batches.items())
            self._pass_gaps(batches)
        return [stored(record) for records in batches.values() for record in records]

    def commit(self, next_offsets: Mapping[tuple[str, int], int]) -> None:
        """See `GroupReader`."""
        offsets = self._owned(next_offsets)
        with self._cluster.reaching():
            try:
                self._consumer.commit(offsets, timeout_ms=int(DELIVERY_SECONDS * 1000))
            except (CommitFailedError, FencedInstanceIdError, RebalanceInProgressError) as error:
                raise self._lost(*sorted(next_offsets)[0]) from error
        self._note(offsets)

    def publish(self, outputs: Outputs, next_offsets: Mapping[tuple[str, int], int]) -> None:
        """See `GroupReader`: a transaction of Kafka, which the group's generation fences."""
        for topic, record in outputs:
            check_appendable(topic, [record])
        self._ensure_topics([topic for topic, _ in outputs])
        try:
            offsets = self._owned(next_offsets)
            member = self._consumer.group_metadata()
            if member.generation_id < 0 or not member.member_id:
                # Without them the broker would not check who commits.
                raise self._lost(*sorted(next_offsets)[0])
            with self._cluster.reaching():
                try:
                    self._transactions.run(outputs, offsets, member, self._are_committed)
                except (CommitFailedError, FencedInstanceIdError) as error:
                    raise self._lost(*sorted(next_offsets)[0]) from error
        except LostPartition:
            # The generation may have ended while some of the partitions stay with this member.
            self._rewind |= {TopicPartition(*name) for name in next_offsets}
            raise
        self._note(offsets)

    def assignment(self) -> set[tuple[str, int]]:
        """See `GroupReader`."""
        return {(each.topic, each.partition) for each in self._consumer.assignment()}

    def close(self) -> None:
        """See `GroupReader`. Does nothing the second time."""
        self._transactions.close()
        with suppress(KafkaError):
            self._consumer.close(timeout_ms=int(REACH_SECONDS * 1000))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _owned(self, next_offsets: Mapping[tuple[str, int], int]) -> Offsets:
        # The broker checks the member's generation, not which partitions it owns: that check is ours.
        owned = self.assignment()
        if lost := {name for name in next_offsets if owned_by_way_of(name, self._group) not in owned}:
            raise self._lost(*sorted(lost)[0])
        return {TopicPartition(*name): OffsetAndMetadata(offset, "", -1) for name, offset in next_offsets.items()}

    def _note(self, offsets: Offsets) -> None:
        self._committed.update({where: place.offset for where, place in offsets.items()})

    def _forget_lost(self) -> None:
        owned = self._consumer.assignment()
        for where in self._handed.keys() - owned:
            del self._handed[where]
            self._committed.pop(where, None)

    def _go_back(self) -> None:
        """Read on from the committed offset where a transaction failed."""
        for where in sorted(self._rewind & self._consumer.assignment()):
            offset = self._consumer.committed(where, timeout_ms=int(DELIVERY_SECONDS * 1000))
            if offset is None:
                self._consumer.seek_to_beginning(where)
            else:
                self._consumer.seek(where, offset)
            self._handed.pop(where, None)
        self._rewind.clear()

    def _pass_gaps(self, read: Collection[TopicPartition]) -> None:
        """Commit offsets that hold no record, such as the marker that ends a transaction: nobody would otherwise."""
        gaps = {}
        for where in self._consumer.assignment().difference(read):
            done = self._committed.get(where, 0)
            if self._handed.get(where, done) == done:
                position = self._consumer.position(where, timeout_ms=0) or 0
                if position > done:
                    gaps[where] = OffsetAndMetadata(position, "", -1)
        if gaps:
            with suppress(CommitFailedError, FencedInstanceIdError, RebalanceInProgressError):
                self._consumer.commit(gaps, timeout_ms=int(DELIVERY_SECONDS * 1000))
                self._note(gaps)
                self._handed.update((where, gap.offset) for where, gap in gaps.items())

    def _are_committed(self, offsets: Offsets) -> bool:
        timeout = int(DELIVERY_SECONDS * 1000)
        return all(self._consumer.committed(each, timeout_ms=timeout) == offsets[each].offset for each in offsets)

    def _lost(self, topic: str, partition: int) -> LostPartition:
        return LostPartition(
            "this member no longer owns the partition",
            seen=f"{topic}/{partition} in group {self._group}",
            rule="what was not committed is handled by its new owner",
        )


class Transactions:
    """The transactions of one member, one at a time.

    A transaction of which the outcome is unknown is kept: it is waited for, and then looked up by its offsets, which
    move only together with its outputs.
    """

    def __init__(self, cluster: Cluster, name: str, timeout: float) -> None:
        self._cluster = cluster
        self._name = name
        self._timeout = timeout
        self._producer: KafkaProducer | None = None
        self._running: _Attempt | None = None
        self._unclear = False

    def run(
        self,
        outputs: Outputs,
        offsets: Offsets,
        member: ConsumerGroupMetadata,
        are_committed: Callable[[Offsets], bool],
    ) -> None:
        """Do it. Raises the client's errors; after others than a lost generation the outcome is unknown."""
        self._settle()
        if self._producer is None:
            self._producer = self._cluster.transactional_producer(self._name, self._timeout)
        if self._unclear and are_committed(offsets):
            self._unclear = False
            return
        producer = self._producer
        self._running = _Attempt(lambda: _transact(producer, outputs, offsets, member))
        self._unclear = True
        self._settle()
        self._unclear = False

    def close(self) -> None:
        """Give the producer up; a transaction in the works is left to the cluster."""
        if self._producer is not None:
            self._producer.close(timeout=0)
            self._producer = None

    def _settle(self) -> None:
        """Wait for the transaction in the works, if any; raise what it raised."""
        if self._running is None:
            return
        if not self._running.ended.wait(DELIVERY_SECONDS):
            raise KafkaError(f"a transaction did not end within {DELIVERY_SECONDS:.0f} s")
        error, self._running = self._running.error, None
        if error is None:
            return
        # The next producer of this name completes or undoes what this one left.
        self.close()
        if isinstance(error, (CommitFailedError, FencedInstanceIdError)):
            self._unclear = False
        raise error


class _Attempt:
    """A transaction in a thread of its own: the client waits without end while the cluster is away."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self._work = work
        threading.Thread(target=self._run, name="kafka-transaction", daemon=True).start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self.error = error
        self.ended.set()


def _transact(producer: KafkaProducer, outputs: Outputs, offsets: Offsets, member: ConsumerGroupMetadata) -> None:
    producer.begin_transaction()
    sent = [
        producer.send(topic, record.value, key=record.key.encode(), headers=list(record.headers))
        for topic, record in outputs
    ]
    producer.flush()
    for future in sent:
        future.get(timeout=0)
    producer.send_offsets_to_transaction(offsets, member)
    producer.commit_transaction()


def stored(record: Any) -> StoredRecord:
    """A record of the client as ours. Foreign producers may leave key or value out, or send keys of any bytes."""
    return StoredRecord(
        key=(record.key or b"").decode("utf-8", "replace"),
        value=record.value or b"",
        headers=tuple((name, value or b"") for name, value in record.headers or ()),
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        time=EPOCH + timedelta(milliseconds=max(0, record.timestamp or 0)),
    )
