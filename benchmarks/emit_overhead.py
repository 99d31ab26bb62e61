"""What one call that logs a prompt and its response of 4 KB costs the application: ours with the outbox on, and peers.

    python -m benchmarks.emit_overhead --peer-python /tmp/peers/bin/python [--repeats 7] [--folder FOLDER]

Each client runs in a process of its own (`_emit_clients.py`), in turns whose order changes: 5,000 calls back to back,
and 1,000 calls a millisecond apart. Our call builds the payload and emits it: masked, by way of the outbox, into the
embedded log on the same disk; `emit` is the same without building the payload. The peers' calls go to a sink on
loopback that takes everything. Peers: langfuse and opentelemetry-sdk with its OTLP exporter
(`python3 -m venv /tmp/peers && /tmp/peers/bin/pip install langfuse opentelemetry-exporter-otlp-proto-http`). The first
turn of each warms up and is not counted. Targets: p50 at most 10 µs and p99 at most 100 µs, and at least 8 times
and 25 times below Langfuse, at the worse end of the 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._null_sink import null_sink

RESULT = Path(__file__).parent / "results" / "emit_overhead.json"
PEERS = ("langfuse", "opentelemetry")
TURNS = {"burst": 5_000, "paced": 1_000}
SIZE = 4096
TARGETS = {"p50": (10e-6, 8.0), "p99": (100e-6, 25.0)}
"""Of back-to-back calls: at most this many seconds, and at least this many times below Langfuse."""
PACKAGES = ("langfuse", "opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http")
RESAMPLES = 10_000
CLOSE_SECONDS = 30.0
Taken = dict[str, dict[str, list[dict[str, float]]]]


class Client:
    """A client in its process."""

    def __init__(self, name: str, python: str, folder: Path, url: str) -> None:
        script = Path(__file__).with_name("_emit_clients.py")
        home = folder / name
        home.mkdir(parents=True)
        search = {"PYTHONPATH": str(Path(__file__).parents[1])} if python == sys.executable else {}
        command = [python, str(script), name, str(home), url]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **search}
        )
        self._line()

    def turn(self, kind: str, number: int, size: int) -> dict[str, float]:
        """Have it do something; what it took, in seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{kind} {number} {size}\n")
        self._process.stdin.flush()
        return self._line()

    def close(self) -> None:
        """End the process, in order where it can."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _line(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a client ended: {self._process.args!r}")
        taken: dict[str, float] = json.loads(line)
        return taken


def measured(python: str, folder: Path, repeats: int) -> Taken:
    """What each turn of each client took."""
    taken: Taken = {}
    with ExitStack() as stack:
        sink = stack.enter_context(null_sink())
        clients = {name: Client(name, python, folder, sink.url) for name in PEERS}
        clients["quillstream"] = Client("quillstream", sys.executable, folder, sink.url)
        for client in clients.values():
            stack.callback(client.close)
        for repeat in range(repeats + 1):
            names = sorted(clients) if repeat % 2 else sorted(clients, reverse=True)
            for name in names:
                kinds = TURNS | ({"emit": TURNS["burst"]} if name == "quillstream" else {})
                for kind, number in kinds.items():
                    result = clients[name].turn(kind, number, SIZE)
                    arrived = sink.spans()
                    if name in PEERS and arrived != number:
                        sys.exit(f"{name} delivered {arrived} of {number}")
                    if repeat:
                        taken.setdefault(name, {}).setdefault(kind, []).append(result)
    return taken


def interval(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """How many times longer theirs takes: the ratio of the medians of (ours, theirs), and its 95 % interval.

    A bootstrap over the repeats, each a pair of neighbours.
    """
    chance = random.Random("bootstrap")
    drawn = sorted(ratio(chance.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    low, high = drawn[RESAMPLES * 25 // 1000], drawn[RESAMPLES * 975 // 1000]
    return {"ratio": round(ratio(pairs), 2), "low": round(low, 2), "high": round(high, 2)}


def ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Theirs by ours, medians of each."""
    return median(theirs for _, theirs in pairs) / median(ours for ours, _ in pairs)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": median(values), "low": min(values), "high": max(values)}


def report(taken: Taken, versions: Mapping[str, str]) -> dict[str, Any]:
    """Everything measured."""
    ours = taken["quillstream"]
    compared = {
        f"{kind} {part}, times below {peer}": interval(
            [(a[part], b[part]) for a, b in zip(ours[kind], taken[peer][kind], strict=True)]
        )
        for kind in TURNS
        for part in ("p50", "p99")
        for peer in PEERS
    }
    targets = {}
    for part, (limit, times) in TARGETS.items():
        targets[f"burst {part} at most {limit * 1e6:.0f} µs"] = median(each[part] for each in ours["burst"]) <= limit
        low = compared[f"burst {part}, times below langfuse"]["low"]
        targets[f"burst {part} at least {times:.0f} times below langfuse"] = low >= times
    return {
        "benchmark": "emit_overhead",
        "machine": machine(),
        "versions": dict(versions),
        "event_bytes": SIZE,
        "calls": TURNS,
        "seconds": {
            name: {
                kind: {part: spread([each[part] for each in turns]) for part in ("p50", "p99", "max")}
                for kind, turns in kinds.items()
            }
            for name, kinds in taken.items()
        },
        "compared": compared,
        "targets": targets,
        "every_repeat": taken,
    }


def machine() -> dict[str, Any]:
    """Where this runs, and how busy it was with other things."""
    return {
        "python": platform.python_version(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
    }


def peer_versions(python: str) -> dict[str, str]:
    """Versions of the peers' packages; exits with what to install when one is missing."""
    program = f"import importlib.metadata as m; print(*[m.version(name) for name in {PACKAGES!r}])"
    asked = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    if asked.returncode:
        sys.exit(
            f"{python} lacks a peer: python3 -m venv /tmp/peers && /tmp/peers/bin/pip install {' '.join(PACKAGES)}"
        )
    return dict(zip(PACKAGES, asked.stdout.split(), strict=True))


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The report for people."""
    for name, kinds in result["seconds"].items():
        for kind, parts in kinds.items():
            p50, p99 = (
                f"{part} {parts[part]['median'] * 1e6:.1f} µs ({parts[part]['low'] * 1e6:.1f} to"
                f" {parts[part]['high'] * 1e6:.1f})"
                for part in ("p50", "p99")
            )
            yield f"{name:14} {kind:6} {p50}, {p99}"
    for name, each in result["compared"].items():
        yield f"{name}: {each['ratio']} ({each['low']} to {each['high']})"
    for name, met in result["targets"].items():
        yield f"{'met   ' if met else 'missed'} {name}"


def options(doc: str | None) -> argparse.ArgumentParser:
    """What this benchmark and `outbox` are told."""
    arguments = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    arguments.add_argument("--peer-python", required=True, help="interpreter of the environment that has the peers")
    arguments.add_argument("--repeats", type=int, default=7)
    arguments.add_argument("--folder", type=Path, help="where the files go; by default the system's temporary folder")
    return arguments


def main() -> None:
    """Measure, print, and keep the result."""
    told = options(__doc__).parse_args()
    versions = peer_versions(told.peer_python)
    with tempfile.TemporaryDirectory(dir=told.folder) as folder:
        result = report(measured(told.peer_python, Path(folder), told.repeats), versions)
    sys.stdout.write("\n".join(lines(result)) + "\n")
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
