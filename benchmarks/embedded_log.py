"""The embedded log beside Kafka on the same disk: durable appends and reading through a group, events a second.

    python -m benchmarks.embedded_log [--repeats 7] [--events 20000] [--folder FOLDER]

Both are used through `EventLog`, with the same encoded events of 1 KB, in turns within one run. The broker is the one
of `infra.kafka_broker` on a folder beside the embedded log's file, with the JVM's own compilers instead of the flags
that make it start sooner. `append` returns when the records are durable: on the embedded log they are fsynced then, on
Kafka they are acknowledged by the one broker, whose page cache is written back later. A consumed event was polled and
its batch committed. The first turn of each warms up and is not counted. Target: at batches of 256 and 1,000 the
embedded log does at least 0.5 of Kafka's events, at the worse end of the 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from infra import kafka_broker
from infra.identity import new_id
from infra.settings import LogSettings, load_settings
from streams.codec import encode
from streams.embedded import EmbeddedLog
from streams.events import Event, InteractionRecorded, now
from streams.log import EventLog, Record, lag

RESULT = Path(__file__).parent / "results" / "embedded_log.json"
BYTES = 1024
BATCHES = (1, 256, 1000)
SINGLES = 300
"""Events of a turn of single appends: each of them waits for the disk or the broker."""
TARGET = 0.5
RESAMPLES = 10_000
Rates = dict[str, list[float]]


def events(number: int) -> list[Record]:
    """Encoded interactions whose values are 1 KB of words, always the same but for their ids."""
    chance = random.Random("embedded log")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 10))) for _ in range(3000)]
    made: list[Record] = []
    for _ in range(number):
        name, text = new_id(), " ".join(chance.choices(words, k=200))
        empty = len(encode(_interaction(name, "", "")).value)
        made.append(encode(_interaction(name, text[:200], text[200 : BYTES - empty])))
    return made


def _interaction(name: str, prompt: str, response: str) -> Event:
    data = InteractionRecorded(
        interaction_id=name, conversation_id=name, prompt=prompt, response=response, finish_reason="stop"
    )
    return Event(id=name, source="benchmark", time=now(), data=data)


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


def turns(logs: dict[str, EventLog], records: Sequence[Record], repeats: int) -> dict[str, Rates]:
    """Rates of each log by measurement, `repeats` of them, the logs in turns."""
    taken: dict[str, Rates] = {}
    for repeat in range(repeats + 1):
        for name in sorted(logs, reverse=repeat % 2 == 1):
            for what, rate in turn(logs[name], records).items():
                taken.setdefault(what, {}).setdefault(name, []).extend([rate] if repeat else [])
            print(f"{name} {repeat}/{repeats}", file=sys.stderr, flush=True)
    return taken


def compared(rates: Rates) -> dict[str, Any]:
    """Medians, their ratio, and its 95 % interval: a bootstrap over the repeats, each a pair of neighbours."""
    pairs = list(zip(rates["embedded"], rates["kafka"], strict=True))
    chance = random.Random("bootstrap")
    ratios = sorted(_ratio(chance.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    interval = [round(ratios[int(RESAMPLES * share)], 3) for share in (0.025, 0.975)]
    return {
        "events_per_second": {name: [round(rate) for rate in each] for name, each in rates.items()},
        "median": {name: round(median(each)) for name, each in rates.items()},
        "ratio": round(_ratio(pairs), 3),
        "interval": interval,
        "reached": interval[0] >= TARGET,
    }


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return median(ours for ours, _ in pairs) / median(theirs for _, theirs in pairs)


def report(repeats: int, number: int, folder: Path) -> dict[str, Any]:
    """Everything measured, in a new folder below `folder`."""
    kafka_broker.JVM = ("-Xmx1g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
    records = events(number)
    with tempfile.TemporaryDirectory(dir=folder, prefix="embedded-log-") as name:
        broker = kafka_broker.KafkaBroker(load_settings().models.cache / "kafka", Path(name) / "kafka")
        with broker as address, closing(EmbeddedLog(Path(name) / "log.db")) as embedded:
            from streams.kafka import KafkaLog

            with closing(KafkaLog(LogSettings(bootstrap_servers=address))) as kafka:
                taken = turns({"embedded": embedded, "kafka": kafka}, records, repeats)
    return {
        "benchmark": "embedded_log",
        "machine": {"python": platform.python_version(), "processor": platform.machine(), "cores": os.cpu_count()},
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
        yield f"{what:13} {rates}; ratio {each['ratio']} ({each['interval'][0]} to {each['interval'][1]})"


def main() -> None:
    """Measure, print, and keep the result."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    arguments.add_argument("--repeats", type=int, default=7)
    arguments.add_argument("--events", type=int, default=20_000)
    arguments.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = arguments.parse_args()
    if reason := kafka_broker.missing():
        sys.exit(f"skipped: {reason}")
    result = report(options.repeats, options.events, options.folder)
    sys.stdout.write("\n".join(lines(result)) + "\n")
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
