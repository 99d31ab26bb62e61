"""From emit() to the row in the store, events a second: outbox → Kafka → consumer → store, beside arize-phoenix.

    python -m benchmarks.pipeline [--repeats 5] [--peer-python /tmp/peers/bin/python] [--database URL]

The emitting process, the broker and the consuming process are apart, as in an installation. The clock starts at the
first emit() and stops when the last event's transaction is committed in the records database; before that the
processes are warmed up with 500 events. Events of 1 KB and 4 KB, masking off and on. Masking off is a masker that
leaves texts alone, given to the emitter by this benchmark: the product always masks.

The peer gets the same number of texts of the same lengths as OpenInference spans, through the OpenTelemetry SDK's batch
processor (its queue raised so that it drops nothing) and OTLP over HTTP; its clock stops when its own SQLite database
holds all of them. It masks nothing. Install it apart: `python3 -m venv /tmp/peers && /tmp/peers/bin/pip install
arize-phoenix opentelemetry-sdk opentelemetry-exporter-otlp-proto-http`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from infra import kafka_broker
from infra.settings import load_settings

FOLDER = Path(__file__).parent
RESULT = FOLDER / "results" / "pipeline.json"
WARM_UP = 500
SECONDS = 300.0
RESAMPLES = 10_000
TARGETS = {"1024 off": 5000, "4096 on": 2000}
PEER_TARGET = 10.0
# The JVM's own compilers: the flags that make a broker start sooner cost throughput.
JVM = ("-Xmx1g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
Rates = dict[str, list[float]]


class Case(NamedTuple):
    """One kind of run."""

    size: int
    masking: str
    database: str

    @property
    def name(self) -> str:
        """Bytes, masking and, where it is not SQLite, the database."""
        return f"{self.size} {self.masking}" + (" postgresql" if self.database else "")


class Role:
    """A process that takes orders and answers in JSON lines."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def order(self, *order: Any) -> None:
        """Give it something to do."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, float]:
        """What it says next."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self._process.args} ended with {self._process.wait()}")
        return dict(json.loads(line))

    def __enter__(self) -> Role:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self._process.wait(120):
            sys.exit(f"{self._process.args} ended with {self._process.returncode}")


def run(address: str, case: Case, number: int, home: Path) -> dict[str, float]:
    """Events a second of one run: acknowledged by the outbox, in Kafka, in the store."""
    command = [sys.executable, "-m", "benchmarks._pipeline_roles"]

    def role(name: str) -> Role:
        return Role(*command, name, address, str(home / name), case.database, str(case.size), case.masking)

    with role("store") as store, role("emit") as emit:
        store.answer()  # it knows where to begin
        for prefix, count in (("warm", WARM_UP), ("run", number)):
            store.order(prefix, count)
            emit.order(prefix, count)
            emitted, stored = emit.answer(), store.answer()
    ends = {"acknowledged": emitted["acknowledged"], "forwarded": emitted["forwarded"], "stored": stored["stored"]}
    return {what: number / (end - emitted["started"]) for what, end in ends.items()}


@contextmanager
def phoenix(python: str, home: Path) -> Iterator[tuple[Role, Path]]:
    """A server and the process that feeds it; and the file of its database."""
    port, grpc = _free_port(), _free_port()
    environment = {
        **os.environ,
        "PHOENIX_WORKING_DIR": str(home),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(grpc),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    home.mkdir()
    with (home / "server.log").open("wb") as output:
        command = [str(Path(python).parent / "phoenix"), "serve"]
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        _wait_for(f"http://127.0.0.1:{port}/healthz", server, home / "server.log")
        with Role(python, str(FOLDER / "_phoenix_feed.py"), f"http://127.0.0.1:{port}/v1/traces") as feed:
            yield feed, home / "phoenix.db"
    finally:
        server.terminate()
        server.wait(60)


def run_phoenix(feed: Role, database: Path, size: int, number: int) -> float:
    """Events a second from the first span to the last row in the server's database."""
    before = _spans(database)
    feed.order("run", number, size)
    started = feed.answer()["started"]
    deadline = time.monotonic() + SECONDS
    while (found := _spans(database)) < before + number:
        if time.monotonic() > deadline:
            sys.exit(f"phoenix stored {found - before} of {number} spans within {SECONDS:.0f} s")
        time.sleep(0.02)
    return number / (time.monotonic() - started)


def turns(address: str, cases: Sequence[Case], options: argparse.Namespace, home: Path) -> dict[str, Rates]:
    """Rates by case and stage, `repeats` of each, everything in turns."""
    taken: dict[str, Rates] = {}
    with phoenix(options.peer_python, home / "phoenix") as (feed, database):
        run_phoenix(feed, database, cases[0].size, WARM_UP)
        for repeat in range(options.repeats):
            for case in cases:
                number = options.events if case.size == 1024 else options.events // 2
                rates = run(address, case, number, home / f"{repeat}-{case.name}")
                for stage, rate in rates.items():
                    taken.setdefault(case.name, {}).setdefault(stage, []).append(rate)
                print(
                    f"{repeat + 1}/{options.repeats} {case.name}: {rates['stored']:,.0f}/s", file=sys.stderr, flush=True
                )
            for size in sorted({case.size for case in cases}):
                rate = run_phoenix(feed, database, size, options.peer_events)
                taken.setdefault(f"{size} phoenix", {}).setdefault("stored", []).append(rate)
                print(f"{repeat + 1}/{options.repeats} {size} phoenix: {rate:,.0f}/s", file=sys.stderr, flush=True)
    return taken


def interval(ours: Sequence[float], theirs: Sequence[float] | None = None) -> list[float]:
    """95 % bootstrap interval, over the repeats, of the median, or of the ratio of the medians of paired repeats."""
    chance = random.Random("bootstrap")
    pairs = list(zip(ours, theirs or [1.0] * len(ours), strict=True))
    samples = sorted(ratio(chance.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    return [round(samples[int(RESAMPLES * share)], 3) for share in (0.025, 0.975)]


def ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Of the medians."""
    return median(ours for ours, _ in pairs) / median(theirs for _, theirs in pairs)


def compared(name: str, rates: Rates, taken: dict[str, Rates]) -> dict[str, Any]:
    """One case: all repeats, medians, and what it is beside the peer and the target."""
    stored = rates["stored"]
    result: dict[str, Any] = {
        "events_per_second": {stage: [round(rate) for rate in each] for stage, each in rates.items()},
        "median": {stage: round(median(each)) for stage, each in rates.items()},
        "stored_interval": interval(stored),
    }
    if name in TARGETS:
        result |= {"target": TARGETS[name], "reached": result["stored_interval"][0] >= TARGETS[name]}
    if "phoenix" not in name:
        theirs = taken[f"{name.split()[0]} phoenix"]["stored"]
        beside = interval(stored, theirs)
        result |= {
            "times_phoenix": round(ratio(list(zip(stored, theirs, strict=True))), 2),
            "times_phoenix_interval": beside,
            "times_phoenix_reached": beside[0] >= PEER_TARGET,
        }
    return result


def report(options: argparse.Namespace) -> dict[str, Any]:
    """Everything measured."""
    databases = ["", options.database] if options.database else [""]
    cases = [Case(*each) for each in product((1024, 4096), ("off", "on"), databases)]
    kafka_broker.JVM = JVM
    load = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
        home = Path(folder)
        broker = kafka_broker.KafkaBroker(load_settings().models.cache / "kafka", home / "kafka")
        with broker as address:
            taken = turns(address, cases, options, home)
    peer = [options.peer_python, "-c", "from importlib.metadata import version as v; print(v('arize-phoenix'))"]
    return {
        "benchmark": "pipeline",
        "machine": {"python": platform.python_version(), "processor": platform.machine(), "cores": os.cpu_count()},
        "load_before": [round(each, 2) for each in load],
        "load_after": [round(each, 2) for each in os.getloadavg()],
        "versions": {
            "kafka-python": version("kafka-python"),
            "sqlite": sqlite3.sqlite_version,
            "arize-phoenix": subprocess.run(peer, capture_output=True, text=True, check=True).stdout.strip(),
        },
        "events": {"1024": options.events, "4096": options.events // 2, "phoenix": options.peer_events},
        "repeats": options.repeats,
        "measured": {name: compared(name, rates, taken) for name, rates in sorted(taken.items())},
    }


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The report for people."""
    for name, each in result["measured"].items():
        low, high = each["stored_interval"]
        beside = ""
        if "times_phoenix" in each:
            less, more = each["times_phoenix_interval"]
            beside = f"; {each['times_phoenix']} × phoenix ({less} to {more})"
        stages = ", ".join(f"{stage} {rate:,}/s" for stage, rate in each["median"].items())
        yield f"{name:20} {stages} ({low:,.0f} to {high:,.0f}){beside}"


def main() -> None:
    """Measure, print, and keep the result."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--events", type=int, default=20_000, help="of 1 KB; half as many of 4 KB")
    arguments.add_argument("--peer-events", type=int, default=1000)
    arguments.add_argument("--peer-python", default="/tmp/peers/bin/python", help="interpreter with arize-phoenix")
    arguments.add_argument("--database", default="", help="URL of an empty PostgreSQL database, measured too")
    options = arguments.parse_args()
    if reason := kafka_broker.missing():
        sys.exit(f"skipped: {reason}")
    if not (Path(options.peer_python).parent / "phoenix").exists():
        sys.exit(f"skipped: no arize-phoenix beside {options.peer_python}; see python -m benchmarks.pipeline's text")
    result = report(options)
    sys.stdout.write("\n".join(lines(result)) + "\n")
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


def _spans(database: Path) -> int:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        return int(connection.execute("SELECT count(*) FROM spans").fetchone()[0])


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    sys.exit(f"phoenix did not start: {log.read_text(errors='replace')[-500:]}")


if __name__ == "__main__":
    main()
