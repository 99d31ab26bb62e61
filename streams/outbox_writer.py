"""The writing side of the outbox: groups of records, each synced to the disk before it is acknowledged.

Every writer appends to segments of its own, so writers never wait for each other. It holds a lock on its newest
segment as long as it lives. After a failed write or sync nothing more is written to that segment, because what the
system still holds of it cannot be trusted; the group is written again to a new one.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from infra.identity import new_id
from streams.outbox_issued import Issued
from streams.segments import FIRST, MARK_AT, UNBORN, Mark, Outgoing, Segment, head, marked, packed, segment


class Files(Protocol):
    """What the writer asks of a file system. All raise `OSError`."""

    def create(self, path: Path) -> int:
        """Make a file that must not exist yet; its descriptor."""
        ...

    def write(self, file: int, data: bytes | memoryview, offset: int) -> int:
        """Write at an offset; how many bytes were written."""
        ...

    def sync(self, file: int) -> None:
        """Return when what was written is on the disk."""
        ...


class SystemFiles:
    """The file system."""

    def create(self, path: Path) -> int:
        """A new file, open for reading and writing."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, file: int, data: bytes | memoryview, offset: int) -> int:
        """One `pwrite`."""
        return os.pwrite(file, data, offset)

    def sync(self, file: int) -> None:
        """`fdatasync`: the data and the length; the times may lag."""
        os.fdatasync(file)


class SegmentWriter:
    """One writer's series of segments. Not safe for threads. Nothing is opened before it is needed."""

    def __init__(self, folder: Path, files: Files, segment_bytes: int) -> None:
        self.writer = new_id()
        """Names the files: unique for ever, where the id of a process comes back."""
        self.issued = Issued(folder, self.writer)
        self._folder = folder
        self._files = files
        self._segment_bytes = segment_bytes
        self._segment: Segment | None = None
        self._file = -1
        self._mark = Mark()
        self._previous = 0
        self._spent = True
        self._salt = 0

    def put(self, group: Sequence[tuple[int, Outgoing]], settled: int) -> int:
        """Make a group of (sequence number, record) durable; bytes written. Raises `OSError`, and then none is kept.

        Every number up to `settled` has been acknowledged or reported as failed once this returns.
        """
        if not group and self._spent:
            return 0  # the next group says it
        try:
            if not group:
                self.set_mark(self._mark._replace(settled=settled))
                return 0
            if self._spent or self._mark.synced >= self._segment_bytes:
                self._next_segment()
            size = self.write_group(group)
            self.sync_group()
            self.set_mark(Mark(self._mark.synced + size, settled, self._mark.records + len(group)))
        except OSError:
            self._spent = True
            with suppress(OSError):
                os.ftruncate(self._file, self._mark.synced)
            raise
        return size

    def write_group(self, group: Sequence[tuple[int, Outgoing]]) -> int:
        """Write the records behind the last group; their bytes."""
        parts: list[bytes] = []
        for sequence, outgoing in group:
            parts += packed(sequence, outgoing, self._salt)
        data = b"".join(parts)
        self._write(data, self._mark.synced)
        return len(data)

    def sync_group(self) -> None:
        """Return when the group is on the disk."""
        self._files.sync(self._file)

    def set_mark(self, mark: Mark) -> None:
        """Say in the segment's header that the group counts."""
        assert self._segment is not None
        self._write(marked(self._segment, mark), MARK_AT)
        self._mark = mark

    def close(self, settled: int) -> None:
        """End in order: every number that was issued was acknowledged or reported as failed."""
        if self._segment is not None:
            with suppress(OSError):
                self.set_mark(self._mark._replace(settled=settled, closed=True))
                self.sync_group()
            os.close(self._file)
            self._segment = None
        self.issued.close(ended=True)

    def abandon(self) -> None:
        """In the child of a fork: let go of what belongs to the parent."""
        self.issued.close(ended=False)
        if self._segment is not None:
            os.close(self._file)
            self._segment = None

    def _next_segment(self) -> None:
        old, old_file, number = self._segment, self._file, 0
        if old is not None:
            # One without records is replaced under its own name: a disk that fails on and on leaves no row of them.
            empty = self._mark.synced == FIRST
            number = old.number if empty else old.number + 1
            self._previous = self._previous if empty else self._mark.synced
        new = segment(self._folder, self.writer, number)
        mark = Mark(settled=self._mark.settled)
        self._file = self._created(new, mark)
        self._segment, self._mark, self._spent, self._salt = new, mark, False, new.salt
        if old is not None:
            os.close(old_file)
        sync_folder(self._folder)

    def _created(self, new: Segment, mark: Mark) -> int:
        # Locked under another name first: without its lock a segment would pass for that of a dead writer.
        self._folder.mkdir(parents=True, exist_ok=True)
        fresh = new.path.with_name(f".{new.path.name}{UNBORN}")
        fresh.unlink(missing_ok=True)
        file = self._files.create(fresh)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write_all(self._files, file, head(new, self._previous, mark), 0)
            self._files.sync(file)
            fresh.rename(new.path)
        except OSError:
            os.close(file)
            with suppress(OSError):
                fresh.unlink()
            raise
        return file

    def _write(self, data: bytes, offset: int) -> None:
        _write_all(self._files, self._file, data, offset)


def sync_folder(folder: Path) -> None:
    """Return when the names in a folder are on the disk."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _write_all(files: Files, file: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = files.write(file, rest, offset)
        rest, offset = rest[written:], offset + written
