"""Masking measured: quality by kind on rows that decided nothing, and time per 4 KB beside presidio-analyzer.

    python -m benchmarks.masking [--part held-out|development] [--repeats 7]

Quality: the synthetic set of presidio-research at ../shared/data/guard/presidio_synth. Rows of even index are the
development half, on which the detectors were tuned; rows of odd index are the held-out half. Both halves come from
the same sentence templates. The held-out half was counted twice: before weaker words ("answering at") could name a
telephone it gave 11 of 14 telephones; those words come from every development number in every development sentence,
not from what was missed. A span is found when a finding of its kind covers it; a finding is right when it overlaps
a span of its kind.
Time: 4 KB pieces of the Markdown corpora at ../shared/data/corpus, all of them and those that are ordinary prose (at
most 15 numbers each). Presidio's recognizers of the same kinds run over a blank spaCy model, without named entities;
that peer is left out where presidio-analyzer is not installed (`pip install presidio-analyzer`).
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
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
Finder = Callable[[str], list[tuple[int, int, str]]]


def ours() -> Finder:
    """The masker's findings as (start, end, kind)."""
    masker = Masker()
    return lambda text: [(span.start, span.end, span.kind) for span in masker.mask(text).spans]


def presidio() -> Finder:
    """Presidio's recognizers of our kinds, at its default threshold, English."""
    import spacy
    import tldextract
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine
    from presidio_analyzer.predefined_recognizers import (
        CreditCardRecognizer,
        EmailRecognizer,
        IbanRecognizer,
        IpRecognizer,
        PhoneRecognizer,
    )

    # Its own list of suffixes, not one from the network.
    tldextract.extract = tldextract.TLDExtract(suffix_list_urls=())

    class Blank(SpacyNlpEngine):
        def __init__(self) -> None:
            super().__init__(ner_model_configuration=NerModelConfiguration(labels_to_ignore=[]))
            self.nlp = {"en": spacy.blank("en")}

    kinds = (CreditCardRecognizer, EmailRecognizer, IbanRecognizer, IpRecognizer, PhoneRecognizer)
    registry = RecognizerRegistry(recognizers=[kind() for kind in kinds])
    engine = AnalyzerEngine(registry=registry, nlp_engine=Blank(), supported_languages=["en"])
    return lambda text: [(each.start, each.end, KINDS[each.entity_type]) for each in engine.analyze(text, "en")]


def quality(find: Finder, rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Of each kind: spans wanted and found, findings made and right."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS.values()}
    for row in rows:
        wanted = [
            (span["start_position"], span["end_position"], KINDS[span["entity_type"]])
            for span in row["spans"]
            if span["entity_type"] in KINDS
        ]
        found = [each for each in find(row["full_text"]) if each[2] in counts]
        for start, end, kind in wanted:
            counts[kind]["wanted"] += 1
            counts[kind]["found"] += any(s <= start and e >= end and k == kind for s, e, k in found)
        for start, end, kind in found:
            counts[kind]["made"] += 1
            counts[kind]["right"] += any(k == kind and start < e and s < end for s, e, k in wanted)
    return {kind: {name: each[name] for name in ("wanted", "found", "made", "right")} for kind, each in counts.items()}


def pieces(folder: Path) -> list[str]:
    """Pieces of 4096 characters from every corpus, spread evenly, always the same."""
    text = "\n".join(file.read_text(errors="replace") for file in sorted(folder.rglob("*.md")))
    step = max(PIECE, len(text) // PIECES)
    return [text[start : start + PIECE] for start in range(0, len(text) - PIECE, step)][:PIECES]


def seconds(find: Finder, texts: Sequence[str]) -> float:
    """Seconds a text, over all of them once."""
    started = time.perf_counter()
    for text in texts:
        find(text)
    return (time.perf_counter() - started) / len(texts)


def spread(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Lowest, median and highest."""
    return {
        "low": round(min(values) * scale, 2),
        "median": round(median(values) * scale, 2),
        "high": round(max(values) * scale, 2),
    }


def timings(finders: dict[str, Finder], texts: Sequence[str], repeats: int) -> dict[str, Any]:
    """Microseconds for 4 KB of each finder, in turns so that the machine's mood strikes both, and their ratio."""
    taken: dict[str, list[float]] = {name: [] for name in finders}
    for find in finders.values():
        seconds(find, texts[:5])
    for _ in range(repeats):
        for name, find in finders.items():
            taken[name].append(seconds(find, texts))
    result: dict[str, Any] = {name: spread(values, 1e6) for name, values in taken.items()}
    if len(taken) == 2:
        first, second = taken.values()
        result["ratio"] = spread([slow / quick for quick, slow in zip(first, second, strict=True)])
    return {"texts": len(texts), "microseconds": result}


def report(part: str, repeats: int) -> dict[str, Any]:
    """Everything measured."""
    finders = {"quillstream": ours()}
    if find_spec("presidio_analyzer"):
        finders["presidio"] = presidio()
    rows = json.loads(SYNTHETIC.read_text())[PARTS[part] :: 2]
    texts = pieces(DATA / "corpus")
    prose = [text for text in texts if len(re.findall(r"\d+", text)) <= 15]
    return {
        "benchmark": "masking",
        "machine": {"python": platform.python_version(), "processor": platform.machine()},
        "part": part,
        "rows": len(rows),
        "quality": {name: quality(find, rows) for name, find in finders.items()},
        "repeats": repeats,
        "prose": timings(finders, prose, repeats),
        "markdown": timings(finders, texts, repeats),
    }


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The report for people."""
    for name, kinds in result["quality"].items():
        for kind, n in kinds.items():
            yield f"{name:12} {kind:6} recall {n['found']}/{n['wanted']}, precision {n['right']}/{n['made']}"
    for texts in ("prose", "markdown"):
        for name, each in result[texts]["microseconds"].items():
            unit = "" if name == "ratio" else " µs per 4 KB"
            yield f"{texts:12} {name:12} {each['median']}{unit} ({each['low']} to {each['high']})"


def main() -> None:
    """Measure, print, and keep the result."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    arguments.add_argument("--part", choices=PARTS, default="held-out")
    arguments.add_argument("--repeats", type=int, default=7)
    options = arguments.parse_args()
    if not SYNTHETIC.exists():
        sys.exit(f"skipped: no data at {SYNTHETIC}")
    result = report(options.part, options.repeats)
    sys.stdout.write("\n".join(lines(result)) + "\n")
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
