"""The event log on Apache Kafka 2.1 or newer. The only file that imports the client library.

Appends go through one idempotent producer (acks=all, zstd): a retry inside the client never doubles a record.
Groups use Kafka's own protocol with cooperative rebalancing, so partitions that stay keep being read meanwhile.
"""

from __future__ import annotations

import os
import socket
import threading
import time as clock
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import (
    AuthorizationError,
    CommitFailedError,
    FencedInstanceIdError,
    GroupIdNotFoundError,
    KafkaError,
    MessageSizeTooLargeError,
    RebalanceInProgressError,
    RecordListTooLargeError,
    RetriableError,
    TopicAlreadyExistsError,
    for_code,
)
from kafka.protocol.consumer import OffsetSpec

from infra.errors import InputError, SettingsError, Unavailable
from infra.settings import LogSettings
from streams.events import COMPACTED
from streams.log import (
    MAX_POLL_INTERVAL,
    MAX_RECORD_BYTES,
    SESSION_TIMEOUT,
    GroupReader,
    LostPartition,
    Record,
    StoredRecord,
    check_appendable,
)

REACH_SECONDS = 5.0
DELIVERY_SECONDS = 10.0
# A batch carries its own header, and a record that zstd cannot shrink keeps its length.
_MAX_BATCH_BYTES = MAX_RECORD_BYTES + (64 << 10)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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
        self._session_timeout = session_timeout
        self._max_poll_interval = max_poll_interval
        self._locks: dict[int, threading.RLock] = {}
        self._clients: dict[tuple[int, str], Any] = {}
        self._known: set[str] = set()

    def ensure_topics(self, topics: Sequence[str]) -> None:
        """See `EventLog`. Replication is the cluster's default; an existing topic is left as it is."""
        for topic in topics:
            check_appendable(topic, [])
        new = [topic for topic in topics if topic not in self._known]
        if not new:
            return
        with self._reaching():
            admin = self._admin()
            created = admin.create_topics({topic: self._layout(topic) for topic in new}, raise_errors=False)
            for topic in created["topics"]:
                error = for_code(topic["error_code"])
                if topic["error_code"] and error is not TopicAlreadyExistsError:
                    raise error(topic["error_message"])
            admin.wait_for_topics(new, timeout_ms=int(REACH_SECONDS * 1000))
        self._known.update(new)

    def append(self, topic: str, records: Sequence[Record]) -> list[tuple[int, int]]:
        """See `EventLog`."""
        check_appendable(topic, records)
        self.ensure_topics([topic])
        with self._reaching():
            producer = self._producer()
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
        with self._lock(), self._reaching():
            if offset >= end:
                return []
            consumer = self._consumer()
            consumer.assign([where])
            consumer.seek(where, offset)
            # The end may hold no record (compaction leaves gaps), so it is the position that says when to stop.
            while len(found) < limit and consumer.position(where) < end:
                batch = consumer.poll(timeout_ms=500, max_records=limit - len(found))
                found += [_stored(record) for record in batch.get(where, [])]
                if clock.monotonic() > deadline:
                    if not found:
                        raise KafkaError(f"no record of {topic}/{partition} came within {DELIVERY_SECONDS:.0f} s")
                    break
        return found

    def partitions(self, topic: str) -> int:
        """See `EventLog`."""
        described = self._ask(lambda admin: admin.describe_topics([topic]))
        return len(described[0]["partitions"]) if described and not described[0]["error_code"] else 0

    def end_offsets(self, topic: str) -> dict[int, int]:
        """See `EventLog`."""
        return self._offsets(topic, OffsetSpec.LATEST)

    def offsets_at(self, topic: str, time: datetime) -> dict[int, int]:
        """See `EventLog`; Kafka keeps milliseconds, so records of the same millisecond count as at the time."""
        found = self._offsets(topic, max(0, (time - _EPOCH) // timedelta(milliseconds=1)))
        if any(offset < 0 for offset in found.values()):
            ends = self.end_offsets(topic)
            found = {number: offset if offset >= 0 else ends[number] for number, offset in found.items()}
        return found

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """See `EventLog`."""
        where = [TopicPartition(topic, number) for number in range(self.partitions(topic))]
        found: Mapping[TopicPartition, OffsetAndMetadata] = {}
        with suppress(GroupIdNotFoundError):
            found = self._ask(lambda admin: admin.list_group_offsets({group: where})[group]) if where else {}
        return {each.partition: max(0, found[each].offset) if each in found else 0 for each in where}

    def join(self, group: str, topics: Sequence[str]) -> GroupReader:
        """See `EventLog`."""
        self.ensure_topics(topics)
        with self._reaching():
            consumer = KafkaConsumer(
                group_id=group,
                enable_auto_commit=False,
                session_timeout_ms=int(self._session_timeout * 1000),
                heartbeat_interval_ms=int(self._session_timeout * 1000 / 4),
                max_poll_interval_ms=int(self._max_poll_interval * 1000),
                partition_assignment_strategy=[CooperativeStickyAssignor],
                **self._reading(),
            )
            # The member that hands out partitions must know them before it joins, or it may hand out none.
            for topic in topics:
                consumer.partitions_for_topic(topic)
            consumer.subscribe(list(topics))
        return KafkaReader(consumer, group, self._reaching)

    def close(self) -> None:
        """See `EventLog`."""
        with self._lock():
            for owner in [owner for owner in self._clients if owner[0] == os.getpid()]:
                client = self._clients.pop(owner)
                with suppress(KafkaError):
                    client.close()

    def _offsets(self, topic: str, spec: int) -> dict[int, int]:
        where = {TopicPartition(topic, number): spec for number in range(self.partitions(topic))}
        if not where:
            return {}
        found = self._ask(lambda admin: admin.list_partition_offsets(where))
        return {each.partition: found[each].offset for each in sorted(where)}

    def _layout(self, topic: str) -> dict[str, Any]:
        configs = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": str(_MAX_BATCH_BYTES)}
        if topic in COMPACTED:
            configs |= {"cleanup.policy": "compact", "retention.ms": "-1"}
        elif topic.endswith(".dlq"):
            configs |= {"retention.ms": "-1"}  # dead letters wait for a person
        return {"num_partitions": self._settings.partitions, "configs": configs}

    def _ask(self, question: Callable[[KafkaAdminClient], Any]) -> Any:
        """An answer of the cluster, asked again for a while: the coordinator of a first group is made on demand."""
        deadline = clock.monotonic() + REACH_SECONDS
        with self._reaching():
            while True:
                try:
                    return question(self._admin())
                except RetriableError:
                    if clock.monotonic() > deadline:
                        raise
                    clock.sleep(0.1)

    def _admin(self) -> KafkaAdminClient:
        return self._client("admin", lambda: KafkaAdminClient(request_timeout_ms=5000, **self._connection()))

    def _consumer(self) -> KafkaConsumer:
        return self._client("reader", lambda: KafkaConsumer(**self._reading()))

    def _producer(self) -> KafkaProducer:
        return self._client(
            "producer",
            lambda: KafkaProducer(
                acks="all",
                enable_idempotence=True,
                compression_type="zstd",
                linger_ms=5,
                batch_size=256 << 10,
                max_request_size=_MAX_BATCH_BYTES,
                max_block_ms=int(REACH_SECONDS * 1000),
                request_timeout_ms=5000,
                delivery_timeout_ms=int(DELIVERY_SECONDS * 1000),
                allow_auto_create_topics=False,
                **self._connection(),
            ),
        )

    def _client(self, role: str, make: Callable[[], Any]) -> Any:
        # Keyed by process: a child of a fork has the sockets of these clients, but not their threads.
        owner = (os.getpid(), role)
        with self._lock():
            if owner not in self._clients:
                self._clients[owner] = make()
            return self._clients[owner]

    def _lock(self) -> threading.RLock:
        # Keyed by process for the same reason: another thread may have held the lock when the parent forked.
        return self._locks.setdefault(os.getpid(), threading.RLock())

    def _reading(self) -> dict[str, Any]:
        limits = {"max_partition_fetch_bytes": 4 << 20, "auto_offset_reset": "earliest"}
        return self._connection() | limits | {"allow_auto_create_topics": False, "request_timeout_ms": 10_000}

    def _connection(self) -> dict[str, Any]:
        """Options of every client; called before each connects, so it also finds out early that nobody is there."""
        settings = self._settings
        config: dict[str, Any] = {
            "bootstrap_servers": [server.strip() for server in settings.bootstrap_servers.split(",")],
            "client_id": "quillstream",
            "security_protocol": settings.security_protocol,
            "bootstrap_timeout_ms": int(REACH_SECONDS * 1000),
            "reconnect_backoff_max_ms": 2000,
        }
        if settings.ssl_cafile:
            config["ssl_cafile"] = settings.ssl_cafile
        if settings.security_protocol.startswith("SASL"):
            if not settings.sasl_mechanism or not settings.sasl_username:
                rule = f"{settings.security_protocol} needs log.sasl_mechanism, log.sasl_username and log.sasl_password"
                raise SettingsError("the Kafka login is not complete", rule=rule)
            config["sasl_mechanism"] = settings.sasl_mechanism
            config["sasl_plain_username"] = settings.sasl_username
            config["sasl_plain_password"] = settings.sasl_password.get_secret_value()
        _knock(config["bootstrap_servers"])
        return config

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
            raise InputError("the broker takes no record of this length", rule=str(error)) from error
        except GroupIdNotFoundError:
            raise
        except (KafkaError, OSError) as error:
            fix = "check the user's rights" if isinstance(error, AuthorizationError) else ""
            raise Unavailable(
                "Kafka does not answer" if not fix else "Kafka refused",
                seen=self._settings.bootstrap_servers,
                rule=str(error) or type(error).__name__,
                fix=fix or "start the broker, or change log.bootstrap_servers",
            ) from error


class KafkaReader:
    """`GroupReader` of Kafka. Use it from one thread at a time; heartbeats run in the client's own thread."""

    def __init__(self, consumer: KafkaConsumer, group: str, reaching: Callable[[], Any]) -> None:
        self._consumer = consumer
        self._group = group
        self._reaching = reaching

    def poll(self, *, max_records: int = 100, timeout: float = 1.0) -> list[StoredRecord]:
        """See `GroupReader`."""
        with self._reaching():
            batches = self._consumer.poll(timeout_ms=int(timeout * 1000), max_records=max_records)
        return [_stored(record) for records in batches.values() for record in records]

    def commit(self, next_offsets: Mapping[tuple[str, int], int]) -> None:
        """See `GroupReader`."""
        # The broker checks the member's generation, not which partitions it owns: that check is ours.
        lost = set(next_offsets) - self.assignment()
        if lost:
            raise self._lost(*sorted(lost)[0])
        offsets = {TopicPartition(*name): OffsetAndMetadata(offset, "", -1) for name, offset in next_offsets.items()}
        with self._reaching():
            try:
                self._consumer.commit(offsets, timeout_ms=int(DELIVERY_SECONDS * 1000))
            except (CommitFailedError, FencedInstanceIdError, RebalanceInProgressError) as error:
                raise self._lost(*sorted(next_offsets)[0]) from error

    def assignment(self) -> set[tuple[str, int]]:
        """See `GroupReader`."""
        return {(each.topic, each.partition) for each in self._consumer.assignment()}

    def close(self) -> None:
        """See `GroupReader`. Does nothing the second time."""
        with suppress(KafkaError):
            self._consumer.close(timeout_ms=int(REACH_SECONDS * 1000))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lost(self, topic: str, partition: int) -> LostPartition:
        return LostPartition(
            "this member no longer owns the partition",
            seen=f"{topic}/{partition} in group {self._group}",
            rule="what was not committed is handled by its new owner",
        )


def _stored(record: Any) -> StoredRecord:
    """A record of the client as ours. Foreign producers may leave key or value out, or send keys of any bytes."""
    return StoredRecord(
        key=(record.key or b"").decode("utf-8", "replace"),
        value=record.value or b"",
        headers=tuple((name, value or b"") for name, value in record.headers or ()),
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        time=_EPOCH + timedelta(milliseconds=max(0, record.timestamp or 0)),
    )


def _knock(servers: Sequence[str]) -> None:
    """Raise the last error when no server takes a connection: the clients would try for longer and say less."""
    last: OSError | None = None
    for server in servers:
        host, _, port = server.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS / len(servers)):
                return
        except ValueError:
            raise SettingsError("not an address of a Kafka broker", seen=server, rule="host:port") from None
        except OSError as error:
            last = error
    raise last or OSError("no server is named")
