"""One client of `benchmarks.kafka` in a process of its own: reads a line `produce TOPIC NUMBER` or
`consume TOPIC NUMBER` from its input, does it, and writes the seconds it took.

    PYTHON benchmarks/_kafka_roles.py ROLE ADDRESS EVENTS

Roles: `public` and `frames` are `KafkaLog`; `confluent` is confluent-kafka; `bare` is kafka-python as it comes alone,
without the packages crc32c and zstandard. EVENTS is a pickle of (key, value, headers). Runs under the interpreter
that has the client.
"""

from __future__ import annotations

import pickle
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH = 1000
"""Events of a call to `append`, and at most of a poll. Every client commits after each poll."""
Event = tuple[str, bytes, list[tuple[str, bytes]]]
Produce = Callable[[list[Any]], None]
Role = tuple[Callable[[Event], Any], Callable[[str], Produce], Callable[[str, int], float]]
"""An event as the client's caller has it; how to produce to a topic; how to consume from one, in seconds."""


def ours(address: str, frames: bool) -> Role:
    """`KafkaLog`, in public form or with frames."""
    from infra.settings import LogSettings
    from streams.kafka import KafkaLog
    from streams.log import Record

    def open_log(topic: str) -> KafkaLog:
        settings = LogSettings(bootstrap_servers=address, frames=frames)
        return KafkaLog(settings, framable=frozenset({topic} if frames else ()))

    def producing(topic: str) -> Produce:
        log = open_log(topic)

        def produce(records: list[Record]) -> None:
            for start in range(0, len(records), BATCH):
                log.append(topic, records[start : start + BATCH])

        return produce

    def consume(topic: str, number: int) -> float:
        with open_log(topic).join(str(uuid.uuid4()), [topic]) as reader:
            return timed(
                lambda: reader.poll(max_records=BATCH, timeout=1.0),
                lambda batch: reader.commit({(each.topic, each.partition): each.offset + 1 for each in batch}),
                number,
            )

    return lambda event: Record(event[0], event[1], tuple(event[2])), producing, consume


def bare(address: str) -> Role:
    """kafka-python alone: without the optional package crc32c it computes checksums in Python."""
    sys.modules["crc32c"] = None  # type: ignore[assignment]
    sys.modules["zstandard"] = None  # type: ignore[assignment]
    from kafka import KafkaConsumer, KafkaProducer

    def producing(topic: str) -> Produce:
        producer = KafkaProducer(bootstrap_servers=address)

        def produce(events: list[Event]) -> None:
            for key, value, headers in events:
                producer.send(topic, value, key.encode(), headers)
            producer.flush()

        return produce

    def consume(topic: str, number: int) -> float:
        consumer = KafkaConsumer(
            topic,
            bootstrap_servers=address,
            group_id=str(uuid.uuid4()),
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        seconds = timed(
            lambda: [each for batch in consumer.poll(timeout_ms=1000, max_records=BATCH).values() for each in batch],
            lambda _: consumer.commit(),
            number,
        )
        consumer.close()
        return seconds

    return lambda event: event, producing, consume


def confluent(address: str) -> Role:
    """confluent-kafka, as durable as ours and compressed alike; each key, value and header list is looked at."""
    from confluent_kafka import Consumer, Producer

    def producing(topic: str) -> Produce:
        producer = Producer(
            {
                "bootstrap.servers": address,
                "enable.idempotence": True,
                "acks": "all",
                "compression.type": "zstd",
                "linger.ms": 5,
                "partitioner": "murmur2_random",
            }
        )

        def produce(events: list[Event]) -> None:
            for key, value, headers in events:
                while True:
                    try:
                        producer.produce(topic, value, key, headers=headers)
                        break
                    except BufferError:
                        producer.poll(0.01)
                producer.poll(0)
            if producer.flush(60):
                sys.exit("confluent-kafka could not deliver")

        return produce

    def consume(topic: str, number: int) -> float:
        settings = {"bootstrap.servers": address, "group.id": str(uuid.uuid4()), "auto.offset.reset": "earliest"}
        consumer = Consumer(settings | {"enable.auto.commit": False})
        consumer.subscribe([topic])
        seconds = timed(
            lambda: [
                (each.key(), each.value(), each.headers(), each.offset(), each.timestamp())
                for each in consumer.consume(BATCH, timeout=0.1)
                if not each.error()
            ],
            lambda _: consumer.commit(asynchronous=False),
            number,
        )
        consumer.close()
        return seconds

    return lambda event: event, producing, consume


def timed(poll: Callable[[], list[Any]], commit: Callable[[list[Any]], object], number: int) -> float:
    """Seconds from the first batch, which is not counted, to the end; scaled to all `number` events."""
    first: list[Any] = []
    while not first:
        first = poll()
    commit(first)
    seen, started = len(first), time.perf_counter()
    while seen < number:
        if batch := poll():
            commit(batch)
            seen += len(batch)
    return (time.perf_counter() - started) * number / (seen - len(first))


def main(role: str, address: str, file: str) -> None:
    """Serve until the input ends."""
    events: list[Any] = pickle.loads(Path(file).read_bytes())  # noqa: S301 - the parent wrote it
    roles: dict[str, Callable[[], Role]] = {
        "public": lambda: ours(address, frames=False),
        "frames": lambda: ours(address, frames=True),
        "confluent": lambda: confluent(address),
        "bare": lambda: bare(address),
    }
    prepared, producing, consume = roles[role]()
    events = [prepared(event) for event in events]
    print("ready", flush=True)
    for line in sys.stdin:
        action, topic, number = line.split()
        if action == "produce":
            produce = producing(topic)
            produce(events[:1])
            started = time.perf_counter()
            produce(events[: int(number)])
            print(time.perf_counter() - started, flush=True)
        else:
            print(consume(topic, int(number)), flush=True)


if __name__ == "__main__":
    # Instead of this folder, where `kafka` is the benchmark.
    sys.path[0] = str(Path(__file__).parent.parent)
    main(*sys.argv[1:])
