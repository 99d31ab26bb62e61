"""The reading side of the outbox: the oldest records of all writers, and how writers ended."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from streams.outbox_positions import Position
from streams.segments import FIRST, UNBORN, Damage, Mark, Outgoing, Segment, read_head, scan, segment

BATCH = 1_000
"""Records sent at once."""
BATCH_BYTES = 8 << 20


class Loss(NamedTuple):
    """Bytes of a segment without an intact record."""

    segment: Segment
    start: int
    end: int
    acknowledged: bool
    """They held acknowledged records and are damaged; else they are a group that its writer did not finish."""


class Reach(NamedTuple):
    """How far a segment counts."""

    end: int
    synced: int
    """Up to here everything was acknowledged."""
    final: bool
    """Nothing will be added: its writer moved on, or is dead."""
    intact: bool
    """The header is as it was written."""
    records: int
    """Records up to `synced` by the header; 0 when it does not say."""


class Batch:
    """Records to send, oldest first of each writer, and the position of each writer after its last one."""

    def __init__(self) -> None:
        self.outgoing: list[Outgoing] = []
        self.through: dict[str, Position] = {}
        self.losses: list[Loss] = []
        self._size = 0

    @property
    def full(self) -> bool:
        """No more records belong in it."""
        return len(self.outgoing) >= BATCH or self._size >= BATCH_BYTES

    def read(
        self, segments: Sequence[Segment], position: Position | None, *, dead: bool, until: Position | None = None
    ) -> None:
        """Take the records of a writer from a position on: those before `until`, else until the batch is full."""
        position = position or Position(segments[0].number, FIRST, 0)
        for each, following in zip(segments, [*segments[1:], None], strict=True):
            if each.number < position.number:
                continue
            if until is not None and position[:2] >= until[:2]:
                break
            if each.number > position.number:
                position = Position(each.number, FIRST, 0)
            with opened(each) as file:
                limits = reach(file, each, following, dead=dead)
                stop = until.offset if until is not None and until.number == each.number else None
                position = self._take(file, each, position, limits, stop)
                if not limits.final or position.offset < limits.end:
                    break
                if not limits.intact:
                    self.losses.append(Loss(each, 0, FIRST, acknowledged=True))
            position = Position(each.number + 1, FIRST, 0)
        self.through[segments[0].writer] = position

    def _take(self, file: int, each: Segment, position: Position, limits: Reach, stop: int | None) -> Position:
        number, offset, records = position
        end = limits.end if stop is None else min(stop, limits.end)
        for found in scan(file, each.salt, offset, end):
            offset = found.end
            if isinstance(found, Damage):
                self.losses.append(Loss(each, found.start, found.end, acknowledged=found.start < limits.synced))
                continue
            self.outgoing.append(found.outgoing)
            self._size += len(found.outgoing.record.value)
            records += 1
            if stop is None and self.full:
                break
        # At the end all records are behind it, those too that were damaged.
        return Position(number, offset, max(records, limits.records) if offset == limits.synced else records)


def reach(file: int, each: Segment, following: Segment | None, *, dead: bool) -> Reach:
    """How far a segment counts that `following` comes after, or that is the last of its writer."""
    previous, mark = read_head(file, each)
    intact = previous is not None and mark is not None
    size = os.fstat(file).st_size
    synced, records = (mark.synced, mark.records) if mark else (size, 0)
    if following is not None:
        synced = _said_by(following) or synced
        return Reach(synced, synced, final=True, intact=intact, records=records)
    if dead:
        return Reach(max(size, synced), synced, final=True, intact=intact, records=records)
    if mark is None:  # just being written
        return Reach(FIRST, FIRST, final=False, intact=True, records=0)
    return Reach(synced, synced, final=False, intact=True, records=records)


def is_dead(segments: Sequence[Segment]) -> bool:
    """Nobody writes after the last of a writer's segments any more."""
    last = segments[-1]
    with opened(last) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # several may ask at once
        except BlockingIOError:
            return False
        # It may have moved on between the listing and the lock; then the next segment is there.
        return not segment(last.path.parent, last.writer, last.number + 1).path.exists()


def delete_unborn(folder: Path) -> None:
    """Delete segments that got no name, because their writer died before. A living one makes another."""
    for path in folder.glob(f".*{UNBORN}"):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            path.unlink()


def end_of(segments: Sequence[Segment]) -> tuple[int, bool]:
    """Of a dead writer: the last sequence number that is durable or was reported as failed; whether it had closed."""
    last = segments[-1]
    with opened(last) as file:
        _, mark = read_head(file, last)
        if mark is not None and mark.closed:
            return mark.settled, True
        known = mark or Mark()
        tail = scan(file, last.salt, known.synced, os.fstat(file).st_size)
        return max([known.settled, *(found.sequence for found in tail if not isinstance(found, Damage))]), False


def waiting_in(segments: Sequence[Segment], position: Position | None) -> int:
    """Records of a writer after a position."""
    position = position or Position(segments[0].number, FIRST, 0)
    count = 0
    for each in segments:
        if each.number < position.number:
            continue
        _, offset, records = position if each.number == position.number else (0, FIRST, 0)
        with opened(each) as file:
            mark = read_head(file, each)[1] or Mark()
            size = os.fstat(file).st_size
            count += max(0, mark.records - records)
            if each is segments[-1] and size > mark.synced and is_dead(segments):
                tail = scan(file, each.salt, max(mark.synced, offset), size)
                count += sum(not isinstance(found, Damage) for found in tail)
    return count


@contextmanager
def opened(each: Segment) -> Iterator[int]:
    """A segment for reading. Raises `FileNotFoundError` once it was forwarded and deleted."""
    file = os.open(each.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)


def _said_by(following: Segment) -> int | None:
    with opened(following) as file:
        return read_head(file, following)[0]
