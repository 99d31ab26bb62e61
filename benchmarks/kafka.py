"""Events through Kafka and bytes on its disk: our public form and our frames beside two other clients.

    python -m benchmarks.kafka --peer-python /tmp/peers/bin/python [--repeats 7] [--events 60000] [--folder FOLDER]

The events are encoded interactions of 1 KB with their CloudEvents headers. Each client runs in a process of its own
(`_kafka_roles.py`), all against one broker in one run, in turns whose order changes: it produces the events to a new
topic of three partitions until all are acknowledged, and reads them through a new group, committing after each poll.
Bytes are those of the topic's segment files. The first turn of each warms up and is not counted. Peers: confluent-kafka
with zstd, one event a record, idempotent (`python3 -m venv /tmp/peers && /tmp/peers/bin/pip install confluent-kafka`),
and kafka-python as it comes alone, without crc32c and zstandard. Targets, at the worse end of the 95 % interval: frames
produce at least 0.85 of confluent-kafka's events with fewer bytes, the public form at least 3 times bare kafka-python.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._events import events
from infra import kafka_broker
from infra.identity import new_id
from infra.settings import LogSettings, load_settings
from streams.kafka import KafkaLog

RESULT = Path(__file__).parent / "results" / "kafka.json"
ROLES = ("public", "frames", "confluent", "bare")
COMPARED = {
    "frames / confluent": ("frames", "confluent", 0.85),
    "public / bare": ("public", "bare", 3.0),
    "public / confluent": ("public", "confluent", None),
}
SLOW = 6
"""Bare kafka-python gets a sixth of the events, so that its turns take about as long as the others'."""
RESAMPLES = 10_000
Rates = dict[str, list[float]]


class Client:
    """A client in its process."""

    def __init__(self, role: str, python: str, address: str, file: Path) -> None:
        script = Path(__file__).with_name("_kafka_roles.py")
        command = [python, str(script), role, address, str(file)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._line()

    def seconds(self, *words: object) -> float:
        """Have it do something; how long that took."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a client ended: {self._process.args!r}")
        return line


def turns(
    clients: Mapping[str, Client], log: KafkaLog, segments: Path, *, number: int, repeats: int
) -> dict[str, Rates]:
    """Produced and consumed events a second and bytes an event of each client, `repeats` of each."""
    taken: dict[str, Rates] = {what: {role: [] for role in clients} for what in ("produce", "consume", "bytes")}
    for repeat in range(repeats + 1):
        for role in sorted(clients, reverse=repeat % 2 == 1):
            topic = f"benchmark.{new_id()}"
            log.ensure_topics([topic])
            some = number // SLOW if role == "bare" else number
            produced = some / clients[role].seconds("produce", topic, some)
            length = sum(file.stat().st_size for file in segments.glob(f"{topic}-*/*.log")) / (some + 1)
            consumed = some / clients[role].seconds("consume", topic, some)
            for what, value in (("produce", produced), ("consume", consumed), ("bytes", length)):
                taken[what][role] += [value] if repeat else []
            print(
                f"{role} {repeat}/{repeats}: {produced:,.0f} {consumed:,.0f} {length:.0f}", file=sys.stderr, flush=True
            )
    return taken


def compared(rates: Rates, ours: str, theirs: str, target: float | None) -> dict[str, Any]:
    """The ratio of the medians and its 95 % interval: a bootstrap over the repeats, each a pair of neighbours."""
    pairs = list(zip(rates[ours], rates[theirs], strict=True))
    chance = random.Random("bootstrap")
    ratios = sorted(_ratio(chance.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    interval = [round(ratios[int(RESAMPLES * share)], 3) for share in (0.025, 0.975)]
    reached = {} if target is None else {"target": target, "reached": interval[0] >= target}
    return {"ratio": round(_ratio(pairs), 3), "interval": interval, **reached}


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return median(mine for mine, _ in pairs) / median(theirs for _, theirs in pairs)


def measured(python: str, folder: Path, *, repeats: int, number: int) -> dict[str, Rates]:
    """Everything, on a broker of its own in a new folder below `folder`."""
    kafka_broker.JVM = ("-Xmx1g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix="kafka-clients-")))
        file = place / "events.pickle"
        file.write_bytes(pickle.dumps([(each.key, each.value, list(each.headers)) for each in events(number)]))
        broker = kafka_broker.KafkaBroker(load_settings().models.cache / "kafka", place / "kafka")
        address = stack.enter_context(broker)
        log = stack.enter_context(closing(KafkaLog(LogSettings(bootstrap_servers=address))))
        clients = {
            role: stack.enter_context(
                closing(Client(role, python if role == "confluent" else sys.executable, address, file))
            )
            for role in ROLES
        }
        return turns(clients, log, place / "kafka" / "log", number=number, repeats=repeats)


def report(taken: dict[str, Rates], versions: dict[str, str], number: int) -> dict[str, Any]:
    """The result to keep."""
    return {
        "benchmark": "kafka",
        "machine": {
            "python": platform.python_version(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "load_average": [round(each, 2) for each in os.getloadavg()],
        },
        "versions": versions,
        "events": number,
        "measured": {
            what: {
                "unit": "bytes an event" if what == "bytes" else "events a second",
                "repeats": {role: [round(value) for value in values] for role, values in rates.items()},
                "median": {role: round(median(values)) for role, values in rates.items()},
                "ratio": {
                    name: compared(rates, ours, theirs, target if what == "produce" else None)
                    for name, (ours, theirs, target) in COMPARED.items()
                },
            }
            for what, rates in taken.items()
        },
    }


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The report for people."""
    for what, each in result["measured"].items():
        yield f"{what:8} " + ", ".join(f"{role} {value:,}" for role, value in each["median"].items())
        for name, ratio in each["ratio"].items():
            yield f"         {name} {ratio['ratio']} ({ratio['interval'][0]} to {ratio['interval'][1]})"


def main() -> None:
    """Measure, print, and keep the result."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    arguments.add_argument("--peer-python", required=True, help="interpreter of an environment with confluent-kafka")
    arguments.add_argument("--repeats", type=int, default=7)
    arguments.add_argument("--events", type=int, default=60_000)
    arguments.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = arguments.parse_args()
    if reason := kafka_broker.missing():
        sys.exit(f"skipped: {reason}")
    asking = [options.peer_python, "-c", "import confluent_kafka as c; print(c.version()[0], c.libversion()[0])"]
    peer = subprocess.run(asking, capture_output=True, text=True, check=False).stdout.split()
    if not peer:
        sys.exit(f"confluent-kafka is not there: {options.peer_python} -m pip install confluent-kafka")
    versions = {"kafka-python": version("kafka-python"), "confluent-kafka": peer[0], "librdkafka": peer[1]}
    taken = measured(options.peer_python, options.folder, repeats=options.repeats, number=options.events)
    result = report(taken, versions, options.events)
    sys.stdout.write("\n".join(lines(result)) + "\n")
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
