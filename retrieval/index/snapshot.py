"""An Edge index on disk: one owner writes `live/`, everybody else reads immutable published snapshots.

    <folder>/live/                shard/ of the owner and applied.json: its position, written after its flush.
                                  Without applied.json it does not exist
    <folder>/published/7/         shard/ and manifest.json (written last): a copy of live/ right after a flush
    <folder>/published/CURRENT    the number of the newest snapshot, replaced atomically
    <folder>/readers/             private copies of readers (opening a shard locks and changes it), swept when dead

Shard files are sparse: 165 MB long and 0.2 MB on disk for a small corpus, so copies keep their holes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field, ValidationError

from infra.artifacts import write_atomic
from infra.errors import CorruptArtifact, NotFound
from infra.identity import Value, new_id
from retrieval.index.edge import EdgeIndex
from retrieval.index.ownership import owned
from retrieval.index.protocol import VectorIndex

KEPT = 2
ATTEMPTS = 5
READER_GRACE = 60.0


class SnapshotManifest(Value):
    """What a published snapshot holds."""

    number: int = Field(ge=1, description="Rises with each publication.")
    position: dict[int, int] = Field(description="Partition of content.documents to the next offset not in it.")


class EdgeHome:
    """The folder of one index build on Qdrant Edge. Nothing is touched before the first call.

    `dimensions` is asked only when a shard is created, since it may load the embedder.
    """

    def __init__(self, folder: Path, dimensions: Callable[[], int]) -> None:
        self._folder = folder
        self._dimensions = dimensions
        self._lock = threading.Lock()
        self._reader: _Reader | None = None

    def open(self) -> VectorIndex:
        """The live shard; a `live/` whose position was never recorded is debris of a crash and is made anew."""
        live = self._folder / "live"
        if not self._applied_file.exists():
            shutil.rmtree(live, ignore_errors=True)
        index = EdgeIndex.open(live / "shard", self._dimensions)
        if not self._applied_file.exists():
            index.flush()
            self.set_applied({})
        return index

    def applied(self) -> dict[int, int]:
        """Position of the live shard."""
        return read_position(self._applied_file) or {}

    def set_applied(self, position: Mapping[int, int]) -> None:
        """Record the position of the live shard."""
        write_position(self._applied_file, position)

    def publish(self, position: Mapping[int, int]) -> None:
        """Copy the live shard (flushed, not written to meanwhile) as the next snapshot and point readers to it."""
        published = self._folder / "published"
        published.mkdir(parents=True, exist_ok=True)
        for debris in published.glob(".staging-*"):
            shutil.rmtree(debris, ignore_errors=True)
        number = max((int(folder.name) for folder in published.iterdir() if folder.name.isdigit()), default=0) + 1
        staging = published / f".staging-{new_id()}"
        copy_sparse(self._folder / "live" / "shard", staging / "shard")
        manifest = SnapshotManifest(number=number, position=dict(position))
        write_atomic(staging / "manifest.json", manifest.model_dump_json().encode())
        staging.rename(published / str(number))
        write_atomic(published / "CURRENT", str(number).encode())
        self._remove_old(published, number)
        self._sweep_readers()

    def published(self) -> dict[int, int] | None:
        """Position of the newest snapshot."""
        manifest = self._newest()
        return dict(manifest.position) if manifest else None

    @contextmanager
    def read(self) -> Iterator[tuple[VectorIndex, dict[int, int]]]:
        """The newest snapshot in a private copy, opened again only when a newer one was published."""
        with self._lock:
            reader = self._refreshed()
            yield reader.index, dict(reader.manifest.position)

    def close(self) -> None:
        """Delete the private copy."""
        with self._lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None

    @property
    def _applied_file(self) -> Path:
        return self._folder / "live" / "applied.json"

    def _newest(self) -> SnapshotManifest | None:
        published = self._folder / "published"
        for _ in range(ATTEMPTS):
            try:
                number = (published / "CURRENT").read_text()
            except FileNotFoundError:
                return None
            try:
                return SnapshotManifest.model_validate_json((published / number / "manifest.json").read_bytes())
            except FileNotFoundError:
                continue  # removed between the two reads: a newer one exists
            except ValidationError as error:
                raise CorruptArtifact(
                    "the manifest of an index snapshot does not parse",
                    seen=published / number,
                    fix=f"delete {published}: it is published again",
                ) from error
        raise CorruptArtifact(
            "the newest index snapshot is missing",
            seen=published / number,
            fix=f"delete {published}: it is published again",
        )

    def _refreshed(self) -> _Reader:
        for attempt in range(ATTEMPTS):
            newest = self._newest()
            if newest is None:
                raise NotFound("there is no index to search yet", seen=self._folder, fix="quill ingest PATH")
            if self._reader is not None and self._reader.manifest == newest:
                return self._reader
            opened = _Reader.open(self._folder, newest, self._dimensions)
            if opened is not None:
                if self._reader is not None:
                    self._reader.close()
                self._reader = opened
                return opened
            time.sleep(0.05 * attempt)
        raise CorruptArtifact("the index was published faster than it could be opened", seen=self._folder)

    def _remove_old(self, published: Path, newest: int) -> None:
        for folder in published.iterdir():
            if folder.name.isdigit() and int(folder.name) <= newest - KEPT:
                (folder / "manifest.json").unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)

    def _sweep_readers(self) -> None:
        for lock in (self._folder / "readers").glob("*.lock"):
            try:
                if time.time() - lock.stat().st_mtime < READER_GRACE:
                    continue  # perhaps created and not yet locked
            except FileNotFoundError:
                continue
            with owned(lock) as dead:
                if dead:
                    shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                    lock.unlink(missing_ok=True)


class _Reader:
    """A private copy of one snapshot, opened."""

    def __init__(self, folder: Path, lock: int, manifest: SnapshotManifest, index: EdgeIndex) -> None:
        self.manifest = manifest
        self.index = index
        self._drop = weakref.finalize(self, _drop, folder, lock)  # also when the process ends without a close

    @classmethod
    def open(cls, build: Path, manifest: SnapshotManifest, dimensions: Callable[[], int]) -> _Reader | None:
        """Copy and open a snapshot; None when it was removed meanwhile."""
        snapshot = build / "published" / str(manifest.number)
        folder = build / "readers" / new_id()
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = _held_lock(folder.with_suffix(".lock"))
        try:
            copy_sparse(snapshot / "shard", folder)
            whole = (snapshot / "manifest.json").exists()  # it goes first when a snapshot is removed
        except FileNotFoundError:
            whole = False
        if not whole:
            _drop(folder, lock)
            return None
        return cls(folder, lock, manifest, EdgeIndex.open(folder, dimensions))

    def close(self) -> None:
        self.index.close()
        self._drop()


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a folder; holes of sparse files stay holes, data is synced to disk."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in sorted(source.rglob("*")):
        copy = target / entry.relative_to(source)
        if entry.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
        else:
            copy.parent.mkdir(parents=True, exist_ok=True)
            _copy_file(entry, copy)


def read_position(file: Path) -> dict[int, int] | None:
    """A recorded position, or None when there is none. Raises `CorruptArtifact` when it does not parse."""
    try:
        return {int(partition): int(offset) for partition, offset in json.loads(file.read_text()).items()}
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError) as error:
        fix = f"delete {file.parent}: it is rebuilt from the log"
        raise CorruptArtifact("an index position does not parse", seen=file, rule=str(error), fix=fix) from error


def write_position(file: Path, position: Mapping[int, int]) -> None:
    """Record a position atomically."""
    write_atomic(file, json.dumps({str(partition): offset for partition, offset in position.items()}).encode())


def _copy_file(source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        size = os.fstat(reading.fileno()).st_size
        writing.truncate(size)
        for start, end in _data_ranges(reading.fileno(), size):
            at = start
            while block := os.pread(reading.fileno(), min(1 << 20, end - at), at):
                at += os.pwrite(writing.fileno(), block, at)
        os.fsync(writing.fileno())


def _data_ranges(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    at = 0
    while at < size:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(descriptor, at, os.SEEK_HOLE)
        yield at, end
        at = end


def _held_lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def _drop(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".lock").unlink(missing_ok=True)
    os.close(lock)
