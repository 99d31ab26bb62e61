"""Agreement of the local judge with people, on public ratings, as a table for docs/judges.md.

    python benchmarks/local_judge_agreement.py [--data ../shared/data/judge] [--write docs/judges.md]

Splits are by content: SummEval by document, MT-RAG by task, LLM-Rubric by dialogue, each by rank of the id (even:
development, odd: other). Features were chosen with all rows in view, so 'other' is not untouched data. What a system
(a summariser) contributes is shown by the range over every choice of three systems. A dialogue's score is the mean
over its answers, and Q7 is taken to be conciseness, an inference from the data that its repository does not confirm.
Ends with a reason when the data is absent.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from infra.embedder import open_embedder
from infra.settings import load_settings, quiet_third_parties
from monitoring.local_judge import LocalJudge
from streams.events import Verdict
from streams.protocols import JudgeInput

SYSTEMS_AT_A_TIME = 3
PARTS = ("development", "other")
BEGIN, END = "<!-- agreement: begin -->", "<!-- agreement: end -->"


class Row(NamedTuple):
    """What the judge and people said of one item."""

    part: str
    system: str
    criterion: str
    score: float | None
    rating: float


class Item:
    """Answers that people rated as one, with the ratings by criterion, and the part of the split they lie in."""

    def __init__(self, subjects: list[JudgeInput], ratings: dict[str, float], part: str, system: str = "") -> None:
        self.subjects = subjects
        self.ratings = ratings
        self.part = part
        self.system = system


def summeval(folder: Path) -> list[Item]:
    """News summaries, mean of three experts; consistency is compared with faithfulness."""
    documents = {row["doc_id"]: row["source"] for row in _jsonl(folder / "docs.jsonl")}
    rank = {name: position for position, name in enumerate(sorted(documents))}
    items = []
    for row in _jsonl(folder / "ratings.jsonl"):
        source = documents[row["doc_id"]]
        subject = JudgeInput(prompt=f"Summarise this article.\n\n{source}", response=row["summary"], context=(source,))
        part = PARTS[rank[row["doc_id"]] % 2]
        ratings = {"relevance": row["relevance"], "coherence": row["coherence"], "faithfulness": row["consistency"]}
        items.append(Item([subject], ratings, part, row["system"]))
    return items


def mtrag(folder: Path) -> list[Item]:
    """Answers over retrieved passages, mean of three annotators' faithfulness, 1 to 4."""
    data = json.loads((folder / "reference_subset_with_human_evaluations.json").read_text())
    tasks = {task["task_id"]: task for task in data["tasks"]}
    texts = {document["document_id"]: document["text"] for document in data["documents"]}
    rank = {name: position for position, name in enumerate(sorted(tasks))}
    items = []
    for row in data["evaluations"]:
        task = tasks[row["task_id"]]
        context = tuple(texts[reference["document_id"]] for reference in task["contexts"])
        subject = JudgeInput(prompt=task["input"][-1]["text"], response=row["model_response"], context=context)
        votes = [float(vote["value"]) for vote in row["annotations"]["faithfulness"].values()]
        part = PARTS[rank[row["task_id"]] % 2]
        items.append(Item([subject], {"faithfulness": sum(votes) / len(votes)}, part))
    return items


def llm_rubric(folder: Path) -> list[Item]:
    """Dialogues with an assistant, one person's rating each, 1 to 4."""
    with (folder / "human_judges_real_convs_FIXED_ANON.tsv").open() as file:
        ratings = {row["text_id"]: float(row["Q7"]) for row in csv.DictReader(file, delimiter="\t")}
    items = []
    dialogues = sorted(json.loads((folder / "real_data.json").read_text()), key=lambda dialogue: dialogue["_id"])
    for position, dialogue in enumerate(dialogues):
        turns = dialogue["messages"]
        subjects = [
            JudgeInput(prompt=asked["content"], response=said["content"])
            for asked, said in pairwise(turns)
            if (asked["role"], said["role"]) == ("user", "assistant")
        ]
        part = PARTS[position % 2]
        items.append(Item(subjects, {"conciseness": ratings[dialogue["_id"]]}, part))
    return items


SETS: dict[str, Callable[[Path], list[Item]]] = {
    "summeval": summeval,
    "mtrag_human_eval": mtrag,
    "llm_rubric": llm_rubric,
}


def scored(judge: LocalJudge, items: Iterable[Item]) -> list[Row]:
    """One row per item and rated criterion: the judge's mean score (None when unscored) beside the people's."""
    rows: list[Row] = []
    for item in items:
        judged = [score for judgement in judge.judge(item.subjects) for score in judgement.scores]
        for criterion, rating in item.ratings.items():
            found = [s.score for s in judged if isinstance(s, Verdict) and s.criterion == criterion]
            mean = sum(found) / len(found) if found else None
            rows.append(Row(item.part, item.system, criterion, mean, rating))
    return rows


def lines_of(name: str, rows: Sequence[Row]) -> list[str]:
    """Table lines: Spearman per part and criterion, and the range over choices of systems on the other documents."""
    lines = []
    for part, criterion in sorted({(row.part, row.criterion) for row in rows}):
        chosen = [row for row in rows if (row.part, row.criterion) == (part, criterion)]
        judged = sum(row.score is not None for row in chosen)
        lines.append(f"| {name} | {part} | {criterion} | {_spearman(chosen):.2f} | {judged} of {len(chosen)} |")
        systems = sorted({row.system for row in chosen if row.system})
        if part == PARTS[1] and len(systems) > SYSTEMS_AT_A_TIME:
            choices = list(combinations(systems, SYSTEMS_AT_A_TIME))
            each = sorted(_spearman([row for row in chosen if row.system in choice]) for choice in choices)
            spread = f"{each[0]:.2f} to {each[-1]:.2f}, median {each[len(each) // 2]:.2f}"
            lines.append(f"| {name} | other, {len(choices)} choices of 3 systems | {criterion} | {spread} | |")
    return lines


def table(judge: LocalJudge, data: Path) -> str:
    """The Markdown table of every data set that is present."""
    lines = [f"Judge `{judge.id}`.", "", "| data | part | criterion | Spearman | judged |", "|---|---|---|---|---|"]
    answers, started = 0, time.perf_counter()
    for name, load in SETS.items():
        items = load(data / name)
        answers += sum(len(item.subjects) for item in items)
        lines += lines_of(name, scored(judge, items))
    seconds = (time.perf_counter() - started) / answers
    return "\n".join([*lines, "", f"{answers} answers, {seconds:.3f} s each, embeddings included."])


def main() -> None:
    """Print the table; with --write, put it between the marks of a document."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", type=Path, default=Path("../shared/data/judge"))
    arguments.add_argument("--write", type=Path)
    options = arguments.parse_args()
    if not options.data.exists():
        sys.exit(f"skipped: no ratings at {options.data}")
    quiet_third_parties()
    found = table(LocalJudge(open_embedder(load_settings().models)), options.data)
    sys.stdout.write(found + "\n")
    if options.write:
        head, _, rest = options.write.read_text().partition(BEGIN)
        options.write.write_text(f"{head}{BEGIN}\n{found}\n{END}{rest.partition(END)[2]}")


def _jsonl(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _spearman(rows: Sequence[Row]) -> float:
    from scipy.stats import spearmanr

    pairs = [(row.score, row.rating) for row in rows if row.score is not None]
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


if __name__ == "__main__":
    main()
