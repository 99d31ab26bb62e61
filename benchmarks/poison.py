"""One record in a hundred is poison: how fast a consumer stores the rest, as a share of what it does without.

    python -m benchmarks.poison [--repeats 7] [--events 10000]

A real broker on loopback, records of 1 KB, one consumer with the SQLite store as its sink; the clock runs from joining
the group to the commit of the last record. In turns: a clean topic, one with every kind of poison in equal parts, and
one with each kind alone. Every poisoned record must lie in the dead letters and every other one in the store, or the
run is void. Target: 0.9 of the clean throughput, at the worse end of the 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._pipeline_roles import interactions
from benchmarks.pipeline import JVM, interval
from infra import kafka_broker
from infra.identity import new_id
from infra.settings import LogSettings, Settings, load_settings
from store.opening import open_store
from streams.codec import encode
from streams.consumer import DELAYS, Batched, Consumer
from streams.dead_letters import dead_letter_topic
from streams.events import Event
from streams.kafka import KafkaLog
from streams.log import EventLog, Record, StoredRecord, events_in, lag

RESULT = Path(__file__).parent / "results" / "poison.json"
EVERY = 100
TARGET = 0.9
SECONDS = 300.0
Spoil = Callable[[bytes], bytes]
POISON: dict[str, Spoil] = {
    "bad JSON": lambda value: value[:-1],
    "10 MB": lambda value: value[:-1] + b',"extra":"' + b"x" * 10_000_000 + b'"}',
    "depth 10,000": lambda _: b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "NUL": lambda value: value.replace(b'"prompt":"', b'"prompt":"\\u0000', 1),
    "unknown schema": lambda value: value.replace(b'"schema_version":2', b'"schema_version":99', 1),
}
MIXES: dict[str, list[str]] = {
    "clean": [],
    "all kinds": list(POISON),
    "all but 10 MB": [kind for kind in POISON if kind != "10 MB"],
    **{kind: [kind] for kind in POISON},
}


def fill(log: EventLog, topic: str, kinds: Sequence[str], number: int) -> int:
    """Append so many records, of which each hundredth is poison; how many are."""
    spoils = cycle([POISON[kind] for kind in kinds]) if kinds else None
    poisoned = 0
    batch: list[Record] = []
    for index, payload in enumerate(interactions(new_id(), number, 1024)):
        record = encode(Event(data=payload))
        if spoils and index % EVERY == EVERY // 2:
            record = replace(record, value=next(spoils)(record.value))
            poisoned += 1
        batch.append(record)
        if len(batch) == EVERY or index == number - 1:
            log.append(topic, batch)
            batch = []
    return poisoned


def drain(log: EventLog, topic: str, number: int, poisoned: int, home: Path) -> float:
    """Records a second until all are committed."""
    store = open_store(Settings(home=home))
    stop = threading.Event()

    def handle(events: Sequence[tuple[Event, StoredRecord]]) -> None:
        store.interactions.put_many([event for event, _ in events])

    group = new_id()
    consumer = Consumer(log, group, {topic: Batched(handle)}, delays=DELAYS)
    thread = threading.Thread(target=consumer.run, args=(stop,))
    started = time.perf_counter()
    thread.start()
    while consumer.counters["handled"] + consumer.counters["dead"] < number:
        if time.perf_counter() - started > SECONDS:
            sys.exit(f"{topic}: {dict(consumer.counters)} of {number} within {SECONDS:.0f} s")
        time.sleep(0.002)
    taken = time.perf_counter() - started
    stop.set()
    thread.join()
    dead = events_in(log, dead_letter_topic(topic))
    if (store.interactions.count(), dead, lag(log, group, topic)) != (number - poisoned, poisoned, 0):
        sys.exit(f"{topic}: {store.interactions.count()} stored, {dead} dead of {number} with {poisoned} poisoned")
    store.close()
    return number / taken


def turns(log: EventLog, repeats: int, number: int, home: Path) -> dict[str, list[float]]:
    """Rates by mix, in turns; the first turn warms up and is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in MIXES}
    for repeat in range(repeats + 1):
        for name, kinds in MIXES.items():
            topic = f"poison.{new_id()}"
            poisoned = fill(log, topic, kinds, number)
            rate = drain(log, topic, number, poisoned, home / topic)
            taken[name] += [rate] if repeat else []
            print(f"{repeat}/{repeats} {name}: {rate:,.0f}/s", file=sys.stderr, flush=True)
    return taken


def report(repeats: int, number: int) -> dict[str, Any]:
    """Everything measured."""
    kafka_broker.JVM = JVM
    with tempfile.TemporaryDirectory(prefix="poison-") as folder:
        home = Path(folder)
        broker = kafka_broker.KafkaBroker(load_settings().models.cache / "kafka", home / "kafka")
        with broker as address, closing(KafkaLog(LogSettings(bootstrap_servers=address))) as log:
            taken = turns(log, repeats, number, home)
    measured: dict[str, Any] = {}
    for name, rates in taken.items():
        low, high = interval(rates, taken["clean"])
        measured[name] = {
            "records_per_second": [round(rate) for rate in rates],
            "median": round(median(rates)),
            "share_of_clean": round(median(rates) / median(taken["clean"]), 3),
            "interval": [low, high],
            "reached": low >= TARGET,
        }
    return {
        "benchmark": "poison",
        "machine": {"python": platform.python_version(), "processor": platform.machine(), "cores": os.cpu_count()},
        "load_after": [round(each, 2) for each in os.getloadavg()],
        "events": number,
        "poison": f"1 in {EVERY}",
        "repeats": repeats,
        "measured": measured,
    }


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The report for people."""
    for name, each in result["measured"].items():
        low, high = each["interval"]
        yield f"{name:15} {each['median']:,}/s, {each['share_of_clean']} of clean ({low} to {high})"


def main() -> None:
    """Measure, print, and keep the result."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    arguments.add_argument("--repeats", type=int, default=7)
    arguments.add_argument("--events", type=int, default=10_000)
    options = arguments.parse_args()
    if reason := kafka_broker.missing():
        sys.exit(f"skipped: {reason}")
    result = report(options.repeats, options.events)
    sys.stdout.write("\n".join(lines(result)) + "\n")
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
