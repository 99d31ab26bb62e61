"""Ingesting the sources a user names: once, or again whenever something changes."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import Field

from infra.errors import QuillError
from infra.settings import Settings
from retrieval.fetching import Fetcher, reason_of
from retrieval.ingest import IngestReport, ingest
from retrieval.opening import open_pipeline
from retrieval.pipeline import OnProgress
from retrieval.sources import Rejected, existing
from retrieval.sources_listing import is_remote, scope_of
from store.opening import open_store
from streams.opening import open_log

LOOK = 5.0
"""Seconds between two looks at the clock while files are watched."""


class Ingested(IngestReport):
    """What an ingestion did, of all its sources together."""

    searchable: bool = Field(False, description="Everything published can be found; False when it was not waited for.")
    documents: int | None = Field(None, description="Documents of the store; None without waiting.")
    chunks: int | None = Field(None, description="Their chunks.")
    build: str | None = Field(None, description="Index build id.")

    @property
    def nothing_usable(self) -> bool:
        """Everything that was given was rejected."""
        return bool(self.failed) and not (self.published or self.unchanged or self.removed)

    @property
    def says_something(self) -> bool:
        """Something changed or failed."""
        return bool(self.published or self.removed or self.failed)


class Ingestion:
    """The rooms that ingesting needs. Nothing is opened before it is used."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __enter__(self) -> Self:
        self._log = open_log(self._settings)
        self._store = open_store(self._settings, self._log)
        self._pipeline = open_pipeline(self._settings, self._log, self._store)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipeline.close()
        self._store.close()
        self._log.close()

    def run(self, sources: Sequence[str], *, wait: bool, on_progress: OnProgress | None = None) -> Ingested:
        """Publish what the sources hold and, when `wait`, return when it is searchable.

        A source that does not answer is reported as failed; the others go on. Raises `Unavailable` when the log cannot
        be reached or the index does not get there in time.
        """
        cache = self._settings.home / "sources"
        removed: set[str] = set()
        with Fetcher(source for source in sources if source.startswith(("http://", "https://"))) as fetcher:
            reports = [
                ingest(one, self._log, self._store, fetcher=fetcher, cache=cache, removed=removed) for one in sources
            ]
        outcome = _summed(reports)
        if not wait:
            return outcome
        reached = self._pipeline.reach(outcome.targets, on_progress=on_progress) if outcome.targets else None
        counts = self._store.documents.counts()
        found = {"searchable": True, "documents": counts["documents"], "chunks": counts["chunks"]}
        return outcome.model_copy(update=found | {"build": reached.build if reached else None})

    def watch(
        self,
        sources: Sequence[str],
        on_pass: Callable[[Ingested], None],
        *,
        stop: threading.Event,
        wait: bool,
        every: float,
    ) -> None:
        """Ingest the sources, then again until `stop`: paths when their files change, the others `every` seconds.

        `on_pass` receives what each pass did. What is away for a while (a source, the log, the index) is reported as
        failed and tried again.
        """
        remote = [source for source in sources if is_remote(source)]
        local = [source for source in sources if source not in remote]
        due, pending = time.monotonic(), dict.fromkeys(local)
        for changed in _changes(local, stop):
            pending |= dict.fromkeys(changed)
            if remote and time.monotonic() >= due:
                pending |= dict.fromkeys(remote)
                due = time.monotonic() + every
            if pending and self._passed(list(pending), on_pass, wait=wait):
                pending = {}

    def _passed(self, sources: Sequence[str], on_pass: Callable[[Ingested], None], *, wait: bool) -> bool:
        try:
            on_pass(self.run(sources, wait=wait))
        except QuillError as error:
            failed = [Rejected(source=scope_of(source), reason=reason_of(error)) for source in sources]
            on_pass(Ingested(failed=failed, targets={}))
            return False
        return True


def check(sources: Sequence[str]) -> None:
    """Raise `NotFound` for the first path among the sources where nothing is."""
    for source in sources:
        if not is_remote(source):
            existing(source)


def _summed(reports: Sequence[IngestReport]) -> Ingested:
    targets: dict[int, int] = {}
    skipped: Counter[str] = Counter()
    for report in reports:
        skipped.update(report.skipped)
        for partition, offset in report.targets.items():
            targets[partition] = max(offset, targets.get(partition, 0))
    return Ingested(
        added=sum(report.added for report in reports),
        changed=sum(report.changed for report in reports),
        unchanged=sum(report.unchanged for report in reports),
        removed=sum(report.removed for report in reports),
        folded=sum(report.folded for report in reports),
        failed=[one for report in reports for one in report.failed],
        skipped=dict(skipped),
        targets=targets,
    )


def _changes(paths: Sequence[str], stop: threading.Event) -> Iterator[list[str]]:
    """At once, then every `LOOK` seconds or when files change: those of the paths in which something changed."""
    yield []
    if not paths:
        while not stop.wait(LOOK):
            yield []
        return
    from watchfiles import watch

    roots = {path: Path(path).expanduser().resolve() for path in paths}
    # A file is watched through its folder: editors put another file in its place.
    folders = {root if root.is_dir() else root.parent for root in roots.values()}
    # The first pass read the files before anything watched them, so each path is looked at once more.
    changed = list(paths)
    for events in watch(*folders, stop_event=stop, rust_timeout=int(LOOK * 1000), yield_on_timeout=True):
        places = [Path(place) for _, place in events]
        changed += [path for path, root in roots.items() if any(_shows(root, place) for place in places)]
        yield changed
        changed = []


def _shows(root: Path, place: Path) -> bool:
    """Whether a change at a place can change what a path holds: hidden files do not."""
    if root == place:
        return True
    return place.is_relative_to(root) and not any(part.startswith(".") for part in place.relative_to(root).parts)
