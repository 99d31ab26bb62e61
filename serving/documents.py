"""`quill ingest`: documents onto the stream, and the wait until they can be found."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from infra.identity import Value
from infra.settings import Settings
from retrieval.ingest import IngestReport
from serving.app import Rooms


class Refused(Value):
    """A source that did not become a document."""

    source: str = Field(description="Absolute path.")
    reason: str = Field(description="Why.")


class Ingested(Value):
    """What an ingestion did."""

    published: int = Field(description="Documents that are new or changed.")
    unchanged: int = Field(description="Documents that are as they were.")
    deleted: int = Field(description="Documents that are gone from a folder.")
    rejected: list[Refused] = Field(description="What could not be used, and why.")
    searchable: bool = Field(description="Everything published can be found; False with --no-wait.")
    documents: int | None = Field(None, description="Documents that can be found; None without waiting.")
    chunks: int | None = Field(None, description="Their chunks.")
    build: str | None = Field(None, description="Index build id.")

    @property
    def nothing_usable(self) -> bool:
        """Everything that was given was rejected."""
        return bool(self.rejected) and not (self.published or self.unchanged or self.deleted)


def ingest_paths(settings: Settings, paths: Sequence[Path], *, wait: bool) -> Ingested:
    """Publish what the paths hold and, when `wait`, return when it is searchable.

    Raises `Unavailable` when the log cannot be reached or the index does not get there in time.
    """
    with Rooms(settings) as rooms:
        reports = [rooms.publish(path) for path in paths]
        outcome = _summed(reports)
        targets = _targets(reports)
        if not wait or not targets:
            return outcome if not wait else outcome.model_copy(update=_found(rooms))
        with _bar("index") as shown:
            reached = rooms.reach(targets, shown)
        return outcome.model_copy(update=_found(rooms) | {"build": reached.build})


def _summed(reports: Sequence[IngestReport]) -> Ingested:
    return Ingested(
        published=sum(report.published for report in reports),
        unchanged=sum(report.unchanged for report in reports),
        deleted=sum(report.deleted for report in reports),
        rejected=[Refused(source=one.source, reason=one.reason) for report in reports for one in report.rejected],
        searchable=False,
    )


def _targets(reports: Sequence[IngestReport]) -> dict[int, int]:
    targets: dict[int, int] = {}
    for report in reports:
        for partition, offset in report.targets.items():
            targets[partition] = max(offset, targets.get(partition, 0))
    return targets


def _found(rooms: Rooms) -> dict[str, Any]:
    counts = rooms.store.documents.counts()
    return {"searchable": True, "documents": counts["documents"], "chunks": counts["chunks"]}


@contextmanager
def _bar(name: str) -> Iterator[Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total, *_: progress.update(task, completed=done, total=total or None)
