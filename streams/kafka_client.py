"""Clients of one Kafka cluster, and its errors as ours. The only file that imports the client library."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from kafka import (
    ConsumerGroupMetadata,
    KafkaAdminClient,
    KafkaConsumer,
    KafkaProducer,
    OffsetAndMetadata,
    TopicPartition,
)
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import (
    AuthorizationError,
    CommitFailedError,
    FencedInstanceIdError,
    GroupIdNotFoundError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    RebalanceInProgressError,
    RecordListTooLargeError,
    RetriableError,
    SaslAuthenticationFailedError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownBrokerIdError,
    UnsupportedSaslMechanismError,
    for_code,
)
from kafka.protocol.consumer import OffsetSpec

from infra.errors import InputError, SettingsError, Unavailable
from infra.settings import LogSettings
from streams.kafka_topics import MAX_BATCH_BYTES, topic_layout
from streams.log import check_appendable

__all__ = [
    "CommitFailedError",
    "ConsumerGroupMetadata",
    "ConsumerRebalanceListener",
    "FencedInstanceIdError",
    "GroupIdNotFoundError",
    "KafkaConsumer",
    "KafkaError",
    "KafkaProducer",
    "OffsetAndMetadata",
    "OffsetSpec",
    "RebalanceInProgressError",
    "TopicPartition",
]

# Its warnings belong to the application's log, if it keeps one, and not on everybody's terminal.
logging.getLogger("kafka").addHandler(logging.NullHandler())
REACH_SECONDS = 5.0
DELIVERY_SECONDS = 10.0


_SILENCE = ("Kafka does not answer", "start the broker, or change log.bootstrap_servers")


class Cluster:
    """The cluster that the settings name. Connects at first use. Safe for threads and forks."""

    def __init__(self, settings: LogSettings) -> None:
        self._settings = settings
        self._locks: dict[int, threading.RLock] = {}
        self._clients: dict[tuple[int, str], Any] = {}
        self._known: set[str] = set()

    def lock(self) -> threading.RLock:
        """Guards `reader`, which is for one thread at a time."""
        # Keyed by process: another thread may have held the lock when the parent forked.
        return self._locks.setdefault(os.getpid(), threading.RLock())

    def reader(self) -> KafkaConsumer:
        """A consumer without a group, shared by the process."""
        return self._client("reader", lambda: _made(KafkaConsumer, **self._reading()))

    @contextmanager
    def producing(self) -> Iterator[KafkaProducer]:
        """The idempotent producer of the process: a retry inside it never doubles a record. An error ends it."""
        producer = self._client("producer", lambda: _made(KafkaProducer, **self._writing()))
        try:
            yield producer
        except (MessageSizeTooLargeError, RecordListTooLargeError):
            raise
        except KafkaError:
            # After some errors, as when records expired that had been sent, the client waits for ever for a new id.
            with self.lock():
                if self._clients.get((os.getpid(), "producer")) is producer:
                    del self._clients[os.getpid(), "producer"]
            abandon(producer)
            raise

    def transactional_producer(self, name: str, timeout: float) -> KafkaProducer:
        """A new producer whose transactions the cluster ends by itself after `timeout` seconds.

        A transaction that an earlier producer of this name left is completed or undone before this returns.
        """
        options = {"transactional_id": name, "transaction_timeout_ms": int(timeout * 1000)}
        producer = _made(KafkaProducer, **self._writing(), **options)
        try:
            producer.init_transactions()
        except BaseException:
            abandon(producer)
            raise
        return producer

    def member(self, group: str, *, session_timeout: float, max_poll: float) -> KafkaConsumer:
        """A new consumer in a group, with cooperative rebalancing: partitions that stay keep being read meanwhile."""
        return _made(
            KafkaConsumer,
            group_id=group,
            enable_auto_commit=False,
            session_timeout_ms=int(session_timeout * 1000),
            heartbeat_interval_ms=int(session_timeout * 1000 / 4),
            max_poll_interval_ms=int(max_poll * 1000),
            partition_assignment_strategy=[CooperativeStickyAssignor],
            **self._reading(),
        )

    def ensure(self, topics: Iterable[str]) -> None:
        """Create the topics that are missing, and wait until they can be used. Existing ones are left as they are, and
        who may not create topics can use them all the same."""
        new = [topic for topic in topics if topic not in self._known]
        for topic in new:
            check_appendable(topic, [])
        if not new:
            return
        layouts = {topic: topic_layout(topic, self._settings) for topic in new}
        with self.reaching():
            admin = self._admin()
            created = admin.create_topics(layouts, raise_errors=False)
            failed = {
                topic["name"]: for_code(topic["error_code"]) for topic in created["topics"] if topic["error_code"]
            }
            there = _visible(admin, [name for name, error in failed.items() if error is TopicAuthorizationFailedError])
            for topic in created["topics"]:
                error = failed.get(topic["name"], TopicAlreadyExistsError)
                if error is not TopicAlreadyExistsError and topic["name"] not in there:
                    raise error(topic["error_message"])
            admin.wait_for_topics(new, timeout_ms=int(REACH_SECONDS * 1000))
        self._known.update(new)

    def ask(self, question: Callable[[KafkaAdminClient], Any]) -> Any:
        """An answer of the cluster, asked again for a while: the coordinator of a first group is made on demand, and a
        busy broker is at times the leader of nothing (broker -1)."""
        deadline = time.monotonic() + REACH_SECONDS
        with self.reaching():
            while True:
                try:
                    return question(self._admin())
                except (RetriableError, UnknownBrokerIdError):
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)

    def close(self) -> None:
        """Close the shared clients of this process; they open again when they are used again."""
        with self.lock():
            for owner in [owner for owner in self._clients if owner[0] == os.getpid()]:
                client = self._clients.pop(owner)
                if owner[1] == "producer":
                    abandon(client)
                else:
                    with suppress(KafkaError):
                        client.close()

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Turns errors of the client into ours."""
        try:
            yield
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
            raise InputError("the broker takes no record of this length", rule=str(error)) from error
        except GroupIdNotFoundError:
            raise
        except (KafkaError, OSError) as error:
            what, fix = _refused(error)
            servers, rule = self._settings.bootstrap_servers, str(error) or type(error).__name__
            raise Unavailable(what, seen=servers, rule=rule, fix=fix) from error

    def _admin(self) -> KafkaAdminClient:
        return self._client("admin", lambda: _made(KafkaAdminClient, request_timeout_ms=5000, **self._connection()))

    def _client(self, role: str, make: Callable[[], Any]) -> Any:
        # Keyed by process: a child of a fork has the sockets of these clients, but not their threads.
        owner = (os.getpid(), role)
        with self.lock():
            if owner not in self._clients:
                self._clients[owner] = make()
            return self._clients[owner]

    def _writing(self) -> dict[str, Any]:
        return self._connection() | {
            "acks": "all",
            "enable_idempotence": True,
            "compression_type": "zstd",
            "linger_ms": 5,
            "batch_size": 1 << 20,
            "max_request_size": MAX_BATCH_BYTES,
            "max_block_ms": int(REACH_SECONDS * 1000),
            "request_timeout_ms": 5000,
            "delivery_timeout_ms": int(DELIVERY_SECONDS * 1000),
            "allow_auto_create_topics": False,
        }

    def _reading(self) -> dict[str, Any]:
        return self._connection() | {
            "isolation_level": "read_committed",
            "max_partition_fetch_bytes": 4 << 20,
            "auto_offset_reset": "earliest",
            "allow_auto_create_topics": False,
            "request_timeout_ms": 10_000,
        }

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
        if settings.security_protocol.endswith("SSL"):
            config["ssl_context"] = _trusting(settings)
        if settings.security_protocol.startswith("SASL"):
            if not settings.sasl_mechanism or not settings.sasl_username:
                rule = f"{settings.security_protocol} needs log.sasl_mechanism, log.sasl_username and log.sasl_password"
                raise SettingsError("the Kafka login is not complete", rule=rule)
            config["sasl_mechanism"] = settings.sasl_mechanism
            config["sasl_plain_username"] = settings.sasl_username
            config["sasl_plain_password"] = settings.sasl_password.get_secret_value()
        _knock(config["bootstrap_servers"], config.get("ssl_context"))
        return config


def abandon(producer: KafkaProducer) -> None:
    """Close a producer that need not send what it still holds: `append` and `publish` wait for all they send."""
    # Its own `close` first waits for what can never be sent, and leaves its thread behind when that takes too long.
    producer._sender.force_close()
    with suppress(KafkaError):
        producer.close(timeout=REACH_SECONDS)


class _Reasons(logging.Handler):
    """What the client logs of its first connections: in the end it raises only that it ran out of time."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.telling: KafkaError | None = None

    def emit(self, record: logging.LogRecord) -> None:
        for each in record.args or ():
            # "Socket disconnected" comes between the answers that say why.
            if isinstance(each, KafkaError) and (self.telling is None or _refused(each) != _SILENCE):
                self.telling = each


def _visible(admin: KafkaAdminClient, topics: list[str]) -> set[str]:
    """Those of the topics that exist and that this user may use."""
    described = admin.describe_topics(topics) if topics else []
    return {topic["name"] for topic in described if not topic["error_code"]}


def _made(client: Callable[..., Any], **options: Any) -> Any:
    """A connected client. Raises what kept it from connecting."""
    reasons, logger = _Reasons(), logging.getLogger("kafka.net.manager")
    logger.addHandler(reasons)
    try:
        return client(**options)
    except KafkaTimeoutError as error:
        raise reasons.telling or error from error
    finally:
        logger.removeHandler(reasons)


def _trusting(settings: LogSettings) -> ssl.SSLContext:
    """What proves who the broker is, and who we are if it asks."""
    try:
        context = ssl.create_default_context(cafile=settings.ssl_cafile or None)
        if settings.ssl_certfile:
            context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile or None)
    except OSError as error:
        files = [settings.ssl_cafile, settings.ssl_certfile, settings.ssl_keyfile]
        raise SettingsError(
            "a certificate for Kafka cannot be used",
            seen=", ".join(file for file in files if file),
            rule=str(error),
            fix="change log.ssl_cafile, log.ssl_certfile or log.ssl_keyfile to readable PEM files that belong together",
        ) from error
    return context


def _knock(servers: Sequence[str], trusting: ssl.SSLContext | None) -> None:
    """Raise the last error when no server takes a connection: the clients would try for longer and say less."""
    last: OSError | None = None
    for server in servers:
        host, _, port = server.rpartition(":")
        host = host.strip("[]")
        if not port.isascii() or not port.isdigit():
            raise SettingsError("not an address of a Kafka broker", seen=server, rule="host:port")
        try:
            with socket.create_connection((host, int(port)), timeout=REACH_SECONDS / len(servers)) as plain:
                if trusting is not None:
                    trusting.wrap_socket(plain, server_hostname=host).close()
                return
        except OSError as error:
            last = error
    raise last or OSError("no server is named")


def _refused(error: Exception) -> tuple[str, str]:
    """What happened and how to mend it, by what the client or the network said."""
    if isinstance(error, (SaslAuthenticationFailedError, UnsupportedSaslMechanismError)):
        return "Kafka refused the login", "check log.sasl_mechanism, log.sasl_username and log.sasl_password"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "the broker's certificate is not trusted", "set log.ssl_cafile to the authority that signed it"
    if isinstance(error, ssl.SSLError) or "[SSL" in str(error):
        fix = "check log.security_protocol, and log.ssl_certfile if the broker asks for a certificate"
        return "no secure connection to Kafka came about", fix
    if isinstance(error, AuthorizationError):
        return "Kafka refused", "check the user's rights"
    return _SILENCE
