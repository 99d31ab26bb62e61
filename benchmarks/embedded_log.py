"""The embedded log beside Kafka on the same disk: durable appends and reading through a group, events a second.

    python -m benchmarks.embedded_log [--repeats 7] [--events 20000] [--folder FOLDER] [--peer-python PATH]

Both are used through `EventLog`, with the same encoded events of 1 KB, in turns within one run. The broker is the one
of `infra.kafka_broker` on a folder beside the embedded log's file, with the JVM's own compilers instead of the flags
that make it start sooner. `append` returns when the records are durable: on the embedded log they are fsynced then, on
Kafka they are acknowledged by the one broker, whose page cache is written back later. A consumed event was polled and
its batch committed. The first turn of each warms up and is not counted. Target: at batches of 256 and 1,000 the
embedded log does at least 0.5 of Kafka's events, at the worse end of the 95 % interval.

With --peer-python, the interpreter of an environment with confluent-kafka, that client takes turns on the same broker
too. It is not told to wait until a batch is durable before it sends the next, as the embedded log has to.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._events import events
from benchmarks.kafka import Client
from infra import kafka_broker
from infra.identity import new_id
from infra.settings import LogSettings, load_settings
from streams.embedded import EmbeddedLog
from streams.kafka import KafkaLog
from streams.log import EventLog, Record, lag

RESULT = Path(__file__).parent / "results" / "embedded_log.json"
BATCHES = (1, 256, 1000)
SINGLES = 300
"""Events of a turn of single appends: each of them waits for the disk or the broker."""
TARGET = 0.5
RESAMPLES = 10_000
Rates = dict[str, list[float]]


def appended(log: EventLog, topic: str, records: Sequence[Record], batch: int) -> float:
    """Events a second, appended `batch` at a time."""
    started = time.perf_counter()
    for start in range(0, len(records), batch):
        log.append(topic, records[start : start + batch])
    return len(records) / (time.perf_counter() - started)


def consumed(log: EventLog, topic: str, number: int, batch: int) -> float:
    """Events a second, polled at most `batch` at a time and committed; joining the group is not counted."""
    group = new_id()
    seen = 0
    with log.join(group, [topic]) as reader:
        while not reader.assignment():
            seen += len(reader.poll(max_records=1, timeout=0.1))
        started, before = time.perf_counter(), seen
        while seen < number:
            batch_read = reader.poll(max_records=batch, timeout=5.0)
            if not batch_read:
                sys.exit(f"{type(log).__name__} gave {seen} of {number} events")
            reader.commit({(each.topic, each.partition): each.offset + 1 for each in batch_read})
            seen += len(batch_read)
        rate = (number - before) / (time.perf_counter() - started)
    if lag(log, group, topic):
        sys.exit(f"{type(log).__name__} committed less than it gave")
    return rate


def turn(log: EventLog, records: Sequence[Record]) -> dict[str, float]:
    """Every measurement of one log, once, on topics of its own."""
    rates: dict[str, float] = {}
    for batch in BATCHES:
        topic = f"benchmark.{new_id()}"
        log.ensure_topics([topic])
        some = records[:SINGLES] if batch == 1 else records
        rates[f"append {batch}"] = appended(log, topic, some, batch)
        if batch > 1:
            rates[f"consume {batch}"] = consumed(log, topic, len(some), batch)
    return rates


def confluent_turn(kafka: EventLog, client: Client, number: int) -> dict[str, float]:
    """The same through confluent-kafka, which takes and gives at most 1,000 events at a time."""
    topic = f"benchmark.{new_id()}"
    kafka.ensure_topics([topic])
    produced = number / client.seconds("produce", topic)
    return {"append 1000": produced, "consume 1000": number / client.seconds("consume", topic, number)}


def turns(subjects: Mapping[str, Callable[[], dict[str, float]]], repeats: int) -> dict[str, Rates]:
    """Rates by measurement and subject, `repeats` of each, the subjects in turns whose order changes."""
    taken: dict[str, Rates] = {}
    for repeat in range(repeats + 1):
        for name in sorted(subjects, reverse=repeat % 2 == 1):
            for what, rate in subjects[name]().items():
                taken.setdefault(what, {}).setdefault(name, []).extend([rate] if repeat else [])
            print(f"{name} {repeat}/{repeats}", file=sys.stderr, flush=True)
    return taken


def compared(rates: Rates) -> dict[str, Any]:
    """Rates, medians, and to each peer the ratio with its 95 % interval: a bootstrap over pairs of neighbours."""
    ratios: dict[str, Any] = {}
    for peer in rates.keys() - {"embedded"}:
        pairs = list(zip(rates["embedded"], rates[peer], strict=True))
        chance = random.Random("bootstrap")
        drawn = sorted(_ratio(chance.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
        interval = [round(drawn[int(RESAMPLES * share)], 3) for share in (0.025, 0.975)]
        ratios[peer] = {"ratio": round(_ratio(pairs), 3), "interval": interval, "reached": interval[0] >= TARGET}
    return {
        "events_per_second": {name: [round(rate) for rate in each] for name, each in rates.items()},
        "median": {name: round(median(each)) for name, each in rates.items()},
        "compared": ratios,
    }


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return median(ours for ours, _ in pairs) / median(theirs for _, theirs in pairs)


def measured(repeats: int, records: Sequence[Record], folder: Path, peer_python: str) -> dict[str, Rates]:
    """All rates, in a new folder below `folder`."""
    kafka_broker.JVM = ("-Xmx1g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix="embedded-log-")))
        broker = kafka_broker.KafkaBroker(load_settings().models.cache / "kafka", place / "kafka")
        address = stack.enter_context(broker)
        embedded = stack.enter_context(closing(EmbeddedLog(place / "log.db")))
        kafka = stack.enter_context(closing(KafkaLog(LogSettings(bootstrap_servers=address))))
        subjects = {"embedded": lambda: turn(embedded, records), "kafka": lambda: turn(kafka, records)}
        if peer_python:
            file = place / "events.pickle"
            file.write_bytes(pickle.dumps([(each.key, each.value, list(each.headers)) for each in records]))
            client = stack.enter_context(closing(Client("confluent", peer_python, address, file)))
            subjects["confluent-kafka"] = lambda: confluent_turn(kafka, client, len(records))
        return turns(subjects, repeats)


def report(repeats: int, number: int, folder: Path, peer_python: str) -> dict[str, Any]:
    """Everything measured, and on what."""
    records = events(number)
    taken = measured(repeats, records, folder, peer_python)
    return {
        "benchmark": "embedded_log",
        "machine": {
            "python": platform.python_version(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "load_average": os.getloadavg(),
        },
        "versions": {"sqlite": sqlite3.sqlite_version, "kafka-python": version("kafka-python")},
        "event_bytes": median(len(record.value) for record in records),
        "events": number,
        "singles": SINGLES,
        "repeats": repeats,
        "measured": {what: compared(rates) for what, rates in taken.items()},
    }


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The report for people."""
    for what, each in result["measured"].items():
        rates = ", ".join(f"{name} {rate:,}/s" for name, rate in each["median"].items())
        for peer, to in each["compared"].items():
            yield f"{what:13} {rates}; ratio to {peer} {to['ratio']} ({to['interval'][0]} to {to['interval'][1]})"


def main() -> None:
    """Measure, print, and keep the result."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    arguments.add_argument("--repeats", type=int, default=7)
    arguments.add_argument("--events", type=int, default=20_000)
    arguments.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments.add_argument("--peer-python", default="", help="interpreter of an environment with confluent-kafka")
    options = arguments.parse_args()
    if reason := kafka_broker.missing():
        sys.exit(f"skipped: {reason}")
    result = report(options.repeats, options.events, options.folder, options.peer_python)
    sys.stdout.write("\n".join(lines(result)) + "\n")
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
