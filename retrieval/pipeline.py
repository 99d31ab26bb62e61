"""The feature pipeline: the only writer of document records and of the index.

It reads `content.documents` by offset from its own position: clean, chunk, store, embed, index, flush, and only
then the position. Killed anywhere, it goes on from the last position; applying a document again changes nothing,
because the index is brought to what the store holds, whatever it held before.

One process owns a build at a time. Whoever needs a position that is not reached yet becomes the owner, or waits
for the owner and takes over when it dies.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from pydantic import Field

from infra.embedder import Embedder
from infra.errors import Unavailable
from infra.identity import Value, content_id, short
from infra.settings import Settings
from retrieval import sparse
from retrieval.apply import Applier, next_batch
from retrieval.chunking import ChunkSettings
from retrieval.index.ownership import owned
from retrieval.index.protocol import IndexHome, VectorIndex
from retrieval.index.qdrant import ServerHome
from retrieval.index.snapshot import EdgeHome
from store.opening import Store
from streams.log import EventLog

POLL = 0.1
PUBLISH_EVERY = 2.0
RETRY_AFTER = 2.0

OnProgress = Callable[[int, int, int], None]
"""Documents done, documents in all, chunks embedded so far."""

logger = logging.getLogger(__name__)


class Reached(Value):
    """The state of the index when a position was reached."""

    documents: int = Field(description="Documents in the store.")
    chunks: int = Field(description="Chunks in the index.")
    position: dict[int, int] = Field(description="Partition of content.documents to the next offset not applied.")
    build: str = Field(description="Index build id `sha256:…`.")
    owner: bool = Field(description="This call did the work; False: it was done, or another process did it.")
    applied: int = Field(0, description="Documents that this call applied.")
    embedded: int = Field(0, description="Chunks that this call embedded (the others came from the cache).")
    dead: int = Field(0, description="Documents that this call sent to content.documents.dlq.")


class FeaturePipeline:
    """One index build of an installation."""

    def __init__(
        self,
        settings: Settings,
        log: EventLog,
        store: Store,
        embedder: Embedder,
        *,
        chunking: ChunkSettings | None = None,
    ) -> None:
        self._settings = settings
        self._log = log
        self._store = store
        self.embedder = embedder
        self._chunking = chunking or ChunkSettings()
        self._live: tuple[VectorIndex, dict[int, int]] | None = None
        self._live_lock = threading.Lock()

    @cached_property
    def build(self) -> str:
        """Id of the index build: everything that decides what the index holds for given documents."""
        inputs = {
            "chunking": self._chunking.model_dump(),
            "embedder": self.embedder.id,
            "sparse": sparse.SETTINGS,
            "backend": "qdrant" if self._settings.index.url else "qdrant-edge",
        }
        return content_id("index", inputs)

    def position(self) -> dict[int, int]:
        """Partition of content.documents to the next offset that searches do not see yet."""
        with self._live_lock:
            if self._live is not None:
                return dict(self._live[1])
        return self._home.published() or {}

    def reach(
        self, targets: Mapping[int, int], *, timeout: float = 600, on_progress: OnProgress | None = None
    ) -> Reached:
        """Return when searches of any process see everything below `targets` (partition to next offset).

        Becomes the owner when nobody is, else waits for the owner and takes over if it dies. Raises `Unavailable`
        after `timeout` seconds; what was applied until then stays.
        """
        deadline = time.monotonic() + timeout
        while True:
            if covers(self._home.published() or {}, targets):
                return self._reached(owner=False)
            with owned(self._lock_file) as mine:
                if mine:
                    return self._work(targets, deadline, on_progress)
            if time.monotonic() > deadline:
                raise _too_late(self.position(), targets)
            time.sleep(POLL)

    def run(self, stop: threading.Event) -> None:
        """Own the build and keep up with the log until `stop` is set; stand by while another process owns it.

        An unreachable log, database or index is logged and tried again.
        """
        while not stop.is_set():
            try:
                with owned(self._lock_file) as mine:
                    if mine:
                        self._serve(stop)
            except Unavailable as error:
                logger.warning("feature pipeline: %s; trying again in %.0f s", error, RETRY_AFTER)
                stop.wait(RETRY_AFTER)
            stop.wait(POLL)

    @contextmanager
    def read(self) -> Iterator[tuple[VectorIndex, dict[int, int]]]:
        """The index to search and its position: the live one in its owner, else the newest published one.

        Raises `NotFound` when nothing was ever indexed.
        """
        with self._live_lock:
            if self._live is not None:
                yield self._live[0], dict(self._live[1])
                return
        with self._home.read() as opened:
            yield opened

    def close(self) -> None:
        """Release what reading opened."""
        self._home.close()

    @cached_property
    def _home(self) -> IndexHome:
        folder = self._settings.home / "index" / short(self.build)
        index = self._settings.index
        if not index.url:
            return EdgeHome(folder, lambda: self.embedder.dimensions)
        collection = f"quillstream-{short(self.build)}"
        key = index.api_key.get_secret_value()
        return ServerHome(folder, collection, lambda: self.embedder.dimensions, url=index.url, api_key=key)

    @property
    def _lock_file(self) -> Path:
        return self._settings.home / "index" / short(self.build) / "owner.lock"

    @contextmanager
    def _opened(self) -> Iterator[Applier]:
        index = self._home.open()
        try:
            yield Applier(self._log, self._store, self.embedder, self._chunking, index=index, home=self._home)
        finally:
            index.close()

    def _work(self, targets: Mapping[int, int], deadline: float, on_progress: OnProgress | None) -> Reached:
        with self._opened() as applier:
            total = _distance(applier.position, targets)
            while not covers(applier.position, targets) and time.monotonic() < deadline:
                batch = next_batch(self._log, applier.position)
                if batch is None:
                    time.sleep(POLL)
                else:
                    applier.apply(batch, _counted(on_progress, total))
            if self._home.published() != applier.position:
                self._home.publish(applier.position)
            if not covers(applier.position, targets):
                raise _too_late(applier.position, targets)
            counts = {"applied": applier.applied, "embedded": applier.embedded, "dead": applier.dead}
            return self._reached(owner=True, **counts)

    def _serve(self, stop: threading.Event) -> None:
        with self._opened() as applier:
            published_at = 0.0
            self._set_live(applier)
            try:
                while not stop.is_set():
                    batch = next_batch(self._log, applier.position)
                    if batch is not None:
                        applier.apply(batch)
                        self._set_live(applier)
                    due = batch is None or time.monotonic() - published_at > PUBLISH_EVERY
                    if due and self._home.published() != applier.position:
                        self._home.publish(applier.position)
                        published_at = time.monotonic()
                    if batch is None:
                        stop.wait(POLL)
            finally:
                self._set_live(None)

    def _set_live(self, applier: Applier | None) -> None:
        with self._live_lock:  # waits for a search that still uses the index
            self._live = None if applier is None else (applier.index, dict(applier.position))

    def _reached(self, *, owner: bool, **counts: int) -> Reached:
        held = self._store.documents.counts()
        return Reached(
            documents=held["documents"],
            chunks=held["chunks"],
            position=self.position(),
            build=self.build,
            owner=owner,
            **counts,
        )


def covers(position: Mapping[int, int], targets: Mapping[int, int]) -> bool:
    """Whether a position has passed every target."""
    return all(position.get(partition, 0) >= target for partition, target in targets.items())


def _distance(position: Mapping[int, int], targets: Mapping[int, int]) -> int:
    return sum(max(0, target - position.get(partition, 0)) for partition, target in targets.items())


def _counted(on_progress: OnProgress | None, total: int) -> Callable[[int, int], None] | None:
    if on_progress is None:
        return None
    return lambda handled, embedded: on_progress(min(handled, total), total, embedded)


def _too_late(position: Mapping[int, int], targets: Mapping[int, int]) -> Unavailable:
    return Unavailable(
        "the index did not reach the position in time",
        seen=f"{_distance(position, targets)} documents behind",
        rule=f"position {dict(targets)}",
        fix="run the same command again: it goes on where this one stopped",
    )
