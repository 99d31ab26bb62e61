"""Verbs of this room: `quill ingest` and `quill evaluate retrieval`. `search` and `write` ask a running server first,
so serving has them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.cli import JsonFlag, console, evaluations, print_json, print_rows
from infra.settings import load_settings
from retrieval.ingest_commands import ingest

if TYPE_CHECKING:
    from rich.progress import TaskID


def register(app: typer.Typer) -> None:
    """Add this room's verbs to the command line."""
    app.command("ingest")(ingest)
    evaluations(app).command("retrieval")(retrieval)


def retrieval(
    beir: Annotated[Path, typer.Option(help="Folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv.")],
    split: Annotated[str, typer.Option(help="Which judgements: qrels/SPLIT.tsv.")] = "test",
    as_json: JsonFlag = False,
) -> None:
    """Measure each way of searching on a collection in BEIR's layout; `default` is what `quill search` does."""
    from rich.progress import Progress

    from retrieval.evaluation import evaluate

    with Progress(console=console, disable=as_json) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        report = evaluate(load_settings(), beir, split, on_progress=show)
    if as_json:
        print_json(report)
        return
    rows = [
        {"mode": mode} | {name: f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" for name, one in metrics.items()}
        for mode, metrics in report.modes.items()
    ]
    print_rows(rows, as_json=False)
    console.print(f"{report.queries} queries, {report.documents} documents, {report.chunks} chunks", style="dim")
