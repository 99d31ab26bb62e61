"""Consumer groups on Kafka: members, and their transactions of outputs and offsets."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from infra.errors import QuillError
from infra.identity import new_id
from streams.kafka_client import (
    DELIVERY_SECONDS,
    REACH_SECONDS,
    Cluster,
    CommitFailedError,
    ConsumerGroupMetadata,
    ConsumerRebalanceListener,
    FencedInstanceIdError,
    KafkaConsumer,
    KafkaError,
    KafkaProducer,
    OffsetAndMetadata,
    RebalanceInProgressError,
    TopicPartition,
    abandon,
)
from streams.kafka_records import Layout, Sending
from streams.log import LostPartition, Record, StoredRecord, check_appendable, owned_by_way_of

Offsets = Mapping[TopicPartition, OffsetAndMetadata]
Outputs = Mapping[str, Sequence[Record]]


class KafkaReader:
    """`GroupReader` of Kafka. Use it from one thread at a time; heartbeats run in the client's own thread."""

    def __init__(
        self,
        consumer: KafkaConsumer,
        group: str,
        topics: Sequence[str],
        cluster: Cluster,
        layout: Layout,
        *,
        transaction_timeout: float,
    ) -> None:
        self._consumer = consumer
        self._group = group
        self._cluster = cluster
        self._layout = layout
        self._transactions = Transactions(cluster, layout, f"{group}.{new_id()}", transaction_timeout)
        self._changes = _Changes()
        self._changed: set[TopicPartition] = set()
        self._raw: list[Any] = []
        self._rewind: set[TopicPartition] = set()
        # By our offsets: where this member began, what it handed out and committed up to, and what it read ahead.
        self._starts: dict[TopicPartition, int] = {}
        self._handed: dict[TopicPartition, int] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._ahead: deque[StoredRecord] = deque()
        self._late: dict[tuple[str, int], int] = {}
        # The member that hands out partitions must know them before it joins, or it may hand out none.
        for topic in topics:
            consumer.partitions_for_topic(topic)
        consumer.subscribe(list(topics), listener=self._changes)

    def poll(self, *, max_records: int = 100, timeout: float = 1.0) -> list[StoredRecord]:
        """See `GroupReader`."""
        with self._cluster.reaching():
            self._go_back()
            read = self._fetch(max_records, timeout)
            self._commit_late()
            self._pass_gaps(read)
        batch = [self._ahead.popleft() for _ in range(min(max_records, len(self._ahead)))]
        self._handed.update((TopicPartition(each.topic, each.partition), each.offset + 1) for each in batch)
        return batch

    def commit(self, next_offsets: Mapping[tuple[str, int], int]) -> None:
        """See `GroupReader`."""
        offsets = self._owned(next_offsets)
        with self._cluster.reaching():
            try:
                self._consumer.commit(offsets, timeout_ms=int(DELIVERY_SECONDS * 1000))
            except RebalanceInProgressError:
                # The group can take it only after the next poll; what this member still owns then is committed there.
                self._late.update(next_offsets)
                return
            except (CommitFailedError, FencedInstanceIdError) as error:
                raise self._lost(*sorted(next_offsets)[0]) from error
        self._moved(next_offsets)

    def publish(self, outputs: Sequence[tuple[str, Record]], next_offsets: Mapping[tuple[str, int], int]) -> None:
        """See `GroupReader`: a transaction of Kafka, which the group's generation fences."""
        if not outputs and not next_offsets:
            return
        records: dict[str, list[Record]] = {}
        for topic, record in outputs:
            records.setdefault(topic, []).append(record)
        for topic, its_records in records.items():
            check_appendable(topic, its_records)
        self._cluster.ensure(records)
        try:
            offsets = self._owned(next_offsets)
            member = self._consumer.group_metadata()
            if member.generation_id < 0 or not member.member_id:
                # Without them the broker would not check who commits.
                raise self._lost(*sorted(next_offsets)[0])
            with self._cluster.reaching():
                try:
                    self._transactions.run(records, offsets, member, self._are_committed)
                except (CommitFailedError, FencedInstanceIdError) as error:
                    raise self._lost(*sorted(next_offsets)[0]) from error
        except LostPartition:
            # The generation may have ended while some of the partitions stay with this member.
            self._rewind |= {TopicPartition(*name) for name in next_offsets}
            raise
        self._moved(next_offsets)

    def assignment(self) -> set[tuple[str, int]]:
        """See `GroupReader`."""
        return {(each.topic, each.partition) for each in self._consumer.assignment()}

    def close(self) -> None:
        """See `GroupReader`. Does nothing the second time."""
        self._transactions.close()
        with suppress(QuillError):
            self._commit_late()
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
        return {
            TopicPartition(*name): OffsetAndMetadata(*self._layout.position(name[0], offset), -1)
            for name, offset in next_offsets.items()
        }

    def _moved(self, next_offsets: Mapping[tuple[str, int], int]) -> None:
        for name, offset in next_offsets.items():
            self._committed[TopicPartition(*name)] = offset
            self._late.pop(name, None)

    def _fetch(self, max_records: int, timeout: float) -> set[TopicPartition]:
        """Read ahead as much as is wanted; the partitions that brought something."""
        self._take_up()
        held = self._consumer.assignment() if self._ahead else set()
        self._consumer.pause(*held)
        try:
            # Also when nothing is wanted: partitions change hands inside the client's poll.
            batches = self._consumer.poll(timeout_ms=0 if held else int(timeout * 1000), max_records=max_records)
        finally:
            self._consumer.resume(*(held & self._consumer.assignment()))
        self._changed |= self._changes.take()
        self._raw = [record for records in batches.values() for record in records]
        self._take_up()
        return set(batches)

    def _take_up(self) -> None:
        """Make events of what the client gave; what an error leaves of it is taken up the next time."""
        for where in sorted(self._changed):
            self._forget(where)
            self._changed.discard(where)
        for record in self._raw:
            start = self._starts.get(TopicPartition(record.topic, record.partition), 0)
            self._ahead += self._layout.incoming(record, start)
        self._raw = []

    def _forget(self, where: TopicPartition) -> None:
        """A partition came or went: start from what the group committed, if it is ours now."""
        for places in (self._starts, self._handed, self._committed):
            places.pop(where, None)
        self._late = {
            name: offset for name, offset in self._late.items() if owned_by_way_of(name, self._group) != where
        }
        if self._ahead:
            self._ahead = deque(each for each in self._ahead if (each.topic, each.partition) != where)
        if self._layout.slots(where.topic) > 1 and where in self._consumer.assignment():
            self._starts[where] = self._committed_offset(where) or 0

    def _go_back(self) -> None:
        """Read on from the committed offset where a transaction failed."""
        for where in sorted(self._rewind & self._consumer.assignment()):
            self._forget(where)
            offset = self._committed_offset(where)
            if offset is None:
                self._consumer.seek_to_beginning(where)
            else:
                self._consumer.seek(where, self._layout.position(where.topic, offset)[0])
        self._rewind.clear()

    def _commit_late(self) -> None:
        if self._late:
            with suppress(LostPartition):
                self.commit(dict(self._late))

    def _pass_gaps(self, read: Collection[TopicPartition]) -> None:
        """Commit offsets that hold no record, such as the marker that ends a transaction: nobody would otherwise."""
        gaps: dict[tuple[str, int], int] = {}
        for where in self._consumer.assignment().difference(
            read, {(each.topic, each.partition) for each in self._ahead}
        ):
            done = self._committed.get(where, self._starts.get(where, 0))
            if self._handed.get(where, done) == done:
                offset = self._layout.offset(where.topic, self._consumer.position(where, timeout_ms=0) or 0)
                if offset > done:
                    gaps[where.topic, where.partition] = self._handed[where] = offset
        if gaps:
            with suppress(LostPartition):
                self.commit(gaps)

    def _committed_offset(self, where: TopicPartition) -> int | None:
        found = self._consumer.committed(where, metadata=True, timeout_ms=int(DELIVERY_SECONDS * 1000))
        return None if found is None else self._layout.offset(where.topic, found.offset, found.metadata or "")

    def _are_committed(self, offsets: Offsets) -> bool:
        return all(
            self._committed_offset(each) == self._layout.offset(each.topic, place.offset, place.metadata)
            for each, place in offsets.items()
        )

    def _lost(self, topic: str, partition: int) -> LostPartition:
        return LostPartition(
            "this member no longer owns the partition",
            seen=f"{topic}/{partition} in group {self._group}",
            rule="what was not committed is handled by its new owner",
        )


class _Changes(ConsumerRebalanceListener):  # type: ignore[misc]
    """The partitions that came or went, as the client's own thread tells it during a poll."""

    def __init__(self) -> None:
        self._partitions: set[TopicPartition] = set()

    def take(self) -> set[TopicPartition]:
        """Those since the last time."""
        taken, self._partitions = self._partitions, set()
        return taken

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        self._partitions.update(revoked)

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        self._partitions.update(assigned)

    def on_partitions_lost(self, lost: Collection[TopicPartition]) -> None:
        self._partitions.update(lost)


class Transactions:
    """The transactions of one member, one at a time.

    A transaction of which the outcome is unknown is kept: it is waited for, and then looked up by its offsets, which
    move only together with its outputs.
    """

    def __init__(self, cluster: Cluster, layout: Layout, name: str, timeout: float) -> None:
        self._cluster = cluster
        self._layout = layout
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
        self._running = _Attempt(lambda: self._transact(producer, outputs, offsets, member))
        self._unclear = True
        self._settle()
        self._unclear = False

    def _transact(
        self, producer: KafkaProducer, outputs: Outputs, offsets: Offsets, member: ConsumerGroupMetadata
    ) -> None:
        producer.begin_transaction()
        sent = [pair for topic, records in outputs.items() for pair in send(producer, self._layout, topic, records)]
        producer.flush()
        for _, future in sent:
            future.get(timeout=0)
        producer.send_offsets_to_transaction(offsets, member)
        producer.commit_transaction()

    def close(self) -> None:
        """Give the producer up; a transaction in the works is left to the cluster."""
        if self._producer is not None:
            abandon(self._producer)
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


def send(producer: KafkaProducer, layout: Layout, topic: str, records: Sequence[Record]) -> list[tuple[Sending, Any]]:
    """Hand records to a producer; what was handed over, each with its future."""
    partitions = len(producer.partitions_for(topic))
    return [
        (each, producer.send(topic, each.value, each.key, each.headers, each.partition))
        for each in layout.outgoing(topic, records, partitions)
    ]
