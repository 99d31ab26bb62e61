"""`quill ingest`: documents onto the stream, and the wait until they can be found."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli import JsonFlag, console, print_json
from infra.identity import canonical_json
from infra.settings import load_settings

if TYPE_CHECKING:
    from retrieval.ingestion import Ingested

FAILED = 2


def ingest(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE…", help="Folders, files, pages, feeds, sitemaps, Git repositories: paths or addresses."
        ),
    ],
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until they can be found.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on: ingest again whenever something changes.")] = False,
    every: Annotated[float, typer.Option(min=1, help="With --watch: seconds between two looks at addresses.")] = 300,
    as_json: JsonFlag = False,
) -> None:
    """Put documents on the stream and wait until they can be found; what is gone from a source is deleted."""
    from retrieval.ingestion import Ingestion, check

    check(sources)
    with Ingestion(load_settings()) as ingestion:
        if watch:
            show = _print_line if as_json else _print_change
            stop = threading.Event()
            # A signal ends after the pass in hand: raised inside a library's callback, an interrupt can get lost.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stop.set())
            ingestion.watch(sources, show, stop=stop, wait=not no_wait, every=every)
            return
        with _bar("index") as shown:
            outcome = ingestion.run(sources, wait=not no_wait, on_progress=shown)
    if as_json:
        print_json(outcome)
    else:
        _print_outcome(outcome)
    if outcome.nothing_usable:
        raise typer.Exit(FAILED)


def _print_line(outcome: Ingested) -> None:
    """One JSON object on one line for each pass, read by other programs as it comes."""
    sys.stdout.write(canonical_json(outcome).decode() + "\n")
    sys.stdout.flush()


def _print_change(outcome: Ingested) -> None:
    if outcome.says_something:
        _print_outcome(outcome)


def _print_outcome(outcome: Ingested) -> None:
    counts = (
        f"published {outcome.published} (added {outcome.added}, changed {outcome.changed}, near-duplicates "
        f"{outcome.folded}), unchanged {outcome.unchanged}, deleted {outcome.removed}, rejected {len(outcome.failed)}"
    )
    console.print(counts, highlight=False, soft_wrap=True)
    for one in outcome.failed:
        sys.stderr.write(f"rejected {one.source}: {one.reason}\n")
    if outcome.skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(outcome.skipped.items()))
        console.print(f"passed over: {kinds}", style="dim", highlight=False, soft_wrap=True)
    if outcome.searchable:
        console.print(f"searchable: {outcome.documents} documents, {outcome.chunks} chunks", highlight=False)


@contextmanager
def _bar(name: str) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total, *_: progress.update(task, completed=done, total=total or None)
