"""Masking measured: quality by kind on rows that decided nothing, and time per 4 KB beside presidio-analyzer.

    python -m benchmarks.masking --peer-python PEERS/bin/python [--part held-out|development] [--repeats 7]

Quality: the synthetic set of presidio-research at ../shared/data/guard/presidio_synth. Rows of even index are the
development half, on which the detectors were tuned; rows of odd index are the held-out half. Both halves come from
the same sentence templates. The held-out half was counted three times: before weaker words ("answering at") could name
a telephone it gave 11 of 14 telephones; those words come from every development number in every development sentence,
not from what was missed. The third count came after numbers behind a plus and area codes below 200 changed, both
decided on other texts. A span is found when a finding of its kind covers it; a finding is right when it overlaps
a span of its kind.
Time: 4 KB pieces of the Markdown corpora at ../shared/data/corpus, all of them and those that are ordinary prose (at
most 15 numbers each). Presidio's recognizers of the same kinds run over a blank spaCy model, without named entities,
in a process of its own that takes turns with ours.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from streams.masking import Masker

DATA = Path("../shared/data")
SYNTHETIC = DATA / "guard" / "presidio_synth" / "synth_dataset_v2.json"
RESULT = Path(__file__).parent / "results" / "masking.json"
PARTS = {"development": 0, "held-out": 1}
KINDS = {
    "EMAIL_ADDRESS": "EMAIL",
    "CREDIT_CARD": "CARD",
    "IBAN_CODE": "IBAN",
    "IP_ADDRESS": "IP",
    "PHONE_NUMBER": "PHONE",
}
PIECE = 4096
PIECES = 100
RESAMPLES = 10_000
Found = list[tuple[int, int, str]]


class Ours:
    """The masker in this process."""

    def __init__(self) -> None:
        self._masker = Masker()

    def find(self, texts: Sequence[str]) -> tuple[float, list[Found]]:
        """Seconds for all texts, and for each its findings as (start, end, kind)."""
        started = time.perf_counter()
        masked = [self._masker.mask(text) for text in texts]
        seconds = time.perf_counter() - started
        return seconds, [[(span.start, span.end, span.kind) for span in one.spans] for one in masked]


class Presidio:
    """The peer in an interpreter of its own."""

    def __init__(self, python: str) -> None:
        program = Path(__file__).with_name("_presidio.py")
        self._process = subprocess.Popen([python, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def find(self, texts: Sequence[str]) -> tuple[float, list[Found]]:
        """See `Ours.find`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(list(texts)), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit("the peer ended: python -m venv PEERS && PEERS/bin/pip install presidio-analyzer")
        said = json.loads(answer)
        return said["seconds"], [[(start, end, KINDS[kind]) for start, end, kind in one] for one in said["found"]]

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


Finder = Ours | Presidio


def quality(finder: Finder, rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Of each kind, and of all: spans wanted and found, findings made and right."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS.values()}
    _, findings = finder.find([row["full_text"] for row in rows])
    for row, each in zip(rows, findings, strict=True):
        wanted = [
            (span["start_position"], span["end_position"], KINDS[span["entity_type"]])
            for span in row["spans"]
            if span["entity_type"] in KINDS
        ]
        found = [finding for finding in each if finding[2] in counts]
        for start, end, kind in wanted:
            counts[kind]["wanted"] += 1
            counts[kind]["found"] += any(s <= start and e >= end and k == kind for s, e, k in found)
        for start, end, kind in found:
            counts[kind]["made"] += 1
            counts[kind]["right"] += any(k == kind and start < e and s < end for s, e, k in wanted)
    counts["all"] = sum(counts.values(), Counter())
    return {kind: {name: each[name] for name in ("wanted", "found", "made", "right")} for kind, each in counts.items()}


def pieces(folder: Path) -> list[str]:
    """Pieces of 4096 characters from every corpus, spread evenly, always the same."""
    text = "\n".join(file.read_text(errors="replace") for file in sorted(folder.rglob("*.md")))
    step = max(PIECE, len(text) // PIECES)
    return [text[start : start + PIECE] for start in range(0, len(text) - PIECE, step)][:PIECES]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Lowest, median and highest."""
    return {"low": round(min(values), 2), "median": round(median(values), 2), "high": round(max(values), 2)}


def timings(finders: dict[str, Finder], texts: Sequence[str], repeats: int) -> dict[str, Any]:
    """Microseconds for 4 KB of each finder, in turns so that the machine's mood strikes both; how many times slower the
    peer is, with the 95 % interval of a bootstrap over the repeats, each a pair of neighbours."""
    taken: dict[str, list[float]] = {name: [] for name in finders}
    for finder in finders.values():
        finder.find(texts[:5])
    for _ in range(repeats):
        for name, finder in finders.items():
            taken[name].append(finder.find(texts)[0] / len(texts) * 1e6)
    result: dict[str, Any] = {
        "texts": len(texts),
        "microseconds": {name: [round(value, 2) for value in values] for name, values in taken.items()},
        "spread": {name: spread(values) for name, values in taken.items()},
    }
    if len(taken) == 2:
        pairs = list(zip(*taken.values(), strict=True))
        chance = random.Random("bootstrap")
        ratios = sorted(_ratio(chance.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
        result["times_slower"] = round(_ratio(pairs), 1)
        result["interval"] = [round(ratios[int(RESAMPLES * share)], 1) for share in (0.025, 0.975)]
    return result


def _ratio(pairs: Sequence[tuple[float, ...]]) -> float:
    return median(pair[1] for pair in pairs) / median(pair[0] for pair in pairs)


def report(part: str, repeats: int, peer: str) -> dict[str, Any]:
    """Everything measured; `peer` is the interpreter that has presidio-analyzer, or empty."""
    finders: dict[str, Finder] = {"quillstream": Ours()}
    other = Presidio(peer) if peer else None
    if other is not None:
        finders["presidio"] = other
    rows = json.loads(SYNTHETIC.read_text())[PARTS[part] :: 2]
    texts = pieces(DATA / "corpus")
    prose = [text for text in texts if len(re.findall(r"\d+", text)) <= 15]
    measured = {
        "benchmark": "masking",
        "machine": {"python": platform.python_version(), "processor": platform.machine(), "cores": os.cpu_count()},
        "part": part,
        "rows": len(rows),
        "quality": {name: quality(finder, rows) for name, finder in finders.items()},
        "repeats": repeats,
        "prose": timings(finders, prose, repeats),
        "markdown": timings(finders, texts, repeats),
    }
    if other is not None:
        other.close()
        command = "from importlib.metadata import version; print(version('presidio-analyzer'))"
        said = subprocess.run([peer, "-c", command], capture_output=True, text=True, check=True)
        measured["versions"] = {"google-re2": version("google-re2"), "presidio-analyzer": said.stdout.strip()}
    return measured


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The report for people."""
    for name, kinds in result["quality"].items():
        for kind, n in kinds.items():
            yield f"{name:12} {kind:6} recall {n['found']}/{n['wanted']}, precision {n['right']}/{n['made']}"
    for texts in ("prose", "markdown"):
        for name, each in result[texts]["spread"].items():
            yield f"{texts:12} {name:12} {each['median']} µs per 4 KB ({each['low']} to {each['high']})"
        if "interval" in result[texts]:
            low, high = result[texts]["interval"]
            yield f"{texts:12} presidio takes {result[texts]['times_slower']} times as long (95 %: {low} to {high})"


def main() -> None:
    """Measure, print, and keep the result."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    arguments.add_argument("--part", choices=PARTS, default="held-out")
    arguments.add_argument("--repeats", type=int, default=7)
    arguments.add_argument("--peer-python", default="", help="interpreter of a venv with presidio-analyzer")
    options = arguments.parse_args()
    if not SYNTHETIC.exists():
        sys.exit(f"skipped: no data at {SYNTHETIC}")
    result = report(options.part, options.repeats, options.peer_python)
    sys.stdout.write("\n".join(lines(result)) + "\n")
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
