"""Durable events a second of the outbox alone, and the time to acknowledgement, beside what peers deliver.

    python -m benchmarks.outbox --peer-python /tmp/peers/bin/python [--repeats 7] [--folder FOLDER]

Each client runs in a process of its own (`_emit_clients.py`), in turns whose order changes. Ours: 10,000 events of 1 KB
and of 4 KB, with and without masking, from the first call until every one is fsynced and acknowledged, while the log
is away. Peers: 2,000 calls with the same texts until their own flush returns and a sink on loopback, which takes
everything, has them all; nothing of theirs is durable. Time to acknowledgement: of lone events, and at about a thousand
a second. A second of the processor counts all threads of the client's process: on a machine that does other things too
it says more than one of the clock. The first turn of each warms up and is not counted. Target: at least 20,000 durable
events a second at 1 KB without masking.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks._null_sink import null_sink
from benchmarks.emit_overhead import (
    PEERS,
    Client,
    Taken,
    interval,
    machine,
    options,
    peer_versions,
    spread,
)

RESULT = Path(__file__).parent / "results" / "outbox.json"
OURS = {"unmasked": "masking off", "quillstream": "masking on"}
SIZES = (1024, 4096)
EVENTS = {"ours": 10_000, "peers": 2_000}
WAITED = {"lone": 200, "steady": 500}
TARGET = 20_000


def measured(python: str, folder: Path, repeats: int) -> Taken:
    """Events a second of each client and size, and seconds to acknowledgement."""
    taken: Taken = {}
    with ExitStack() as stack:
        sink = stack.enter_context(null_sink())
        clients = {name: Client(name, python, folder, sink.url) for name in PEERS}
        clients |= {name: Client(name, sys.executable, folder, sink.url) for name in OURS}
        for client in clients.values():
            stack.callback(client.close)
        for repeat in range(repeats + 1):
            for name in sorted(clients) if repeat % 2 else sorted(clients, reverse=True):
                for size in SIZES:
                    turn = _turn(clients[name], name, size)
                    arrived = sink.spans()
                    if name in PEERS and arrived != EVENTS["peers"]:
                        sys.exit(f"{name} delivered {arrived} of {EVENTS['peers']}")
                    if repeat:
                        taken.setdefault(name, {}).setdefault(str(size), []).append(turn)
    return taken


def _turn(client: Client, name: str, size: int) -> dict[str, float]:
    number = EVENTS["peers" if name in PEERS else "ours"]
    taken = client.turn("throughput", number, size)
    result = {
        "events_per_second": number / taken["seconds"],
        "events_per_cpu_second": number / taken["cpu_seconds"],
    }
    if name in OURS:
        for kind, waited in WAITED.items():
            parts = client.turn(kind, waited, size)
            result |= {f"{kind}_{part}": parts[part] for part in ("p50", "p99")}
    return result


def report(taken: Taken, versions: Mapping[str, str]) -> dict[str, Any]:
    """Everything measured."""
    compared = {
        f"{label}, {size} bytes, {unit}, times {peer}": interval(
            [(b[unit], a[unit]) for a, b in zip(taken[name][str(size)], taken[peer][str(size)], strict=True)]
        )
        for name, label in OURS.items()
        for size in SIZES
        for peer in PEERS
        for unit in ("events_per_second", "events_per_cpu_second")
    }
    summary = {
        name: {
            size: {part: spread([turn[part] for turn in turns]) for part in turns[0]} for size, turns in sizes.items()
        }
        for name, sizes in taken.items()
    }
    reached = summary["unmasked"]["1024"]["events_per_second"]["median"]
    return {
        "benchmark": "outbox",
        "machine": machine(),
        "versions": dict(versions),
        "events": EVENTS,
        "summary": summary,
        "compared": compared,
        "targets": {f"at least {TARGET} durable events a second at 1 KB without masking": reached >= TARGET},
        "every_repeat": taken,
    }


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The report for people."""
    for name, sizes in result["summary"].items():
        for size, parts in sizes.items():
            rates = [
                f"{part['median']:,.0f} ({part['low']:,.0f} to {part['high']:,.0f})"
                for part in (parts["events_per_second"], parts["events_per_cpu_second"])
            ]
            yield (
                f"{OURS.get(name, name):14} {size:>5} bytes: {rates[0]} a second, {rates[1]} a second of the processor"
            )
            for kind in WAITED:
                if f"{kind}_p50" in parts:
                    p50, p99 = (parts[f"{kind}_{part}"]["median"] * 1e3 for part in ("p50", "p99"))
                    yield f"{'':14} {'':5} acknowledged after ({kind}) p50 {p50:.2f} ms, p99 {p99:.2f} ms"
    for name, each in result["compared"].items():
        yield f"{name}: {each['ratio']} ({each['low']} to {each['high']})"
    for name, met in result["targets"].items():
        yield f"{'met   ' if met else 'missed'} {name}"


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
