"""Masked events on their way to a log that may be away: kept in files until the log has them.

Every process appends to segments of its own in one folder, and whichever holds the forwarder's lock forwards for all,
oldest first of each. Before a batch is sent the ends of its topics are noted; after a crash or an unclear answer the
log is searched from there, and what already arrived is not sent again. Only a broker that takes a record later than
that can still double it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path

from pydantic import Field

from infra.errors import InputError, Unavailable
from infra.identity import Value
from streams.log import EventLog
from streams.outbox_issued import forget, left_behind
from streams.outbox_positions import Attempt, Gap, Positions, State
from streams.outbox_reading import Batch, Loss, delete_unborn, end_of, is_dead, waiting_in
from streams.outbox_rejected import Rejected
from streams.outbox_writer import Files, SegmentWriter, SystemFiles, sync_folder
from streams.segments import Outgoing, Segment, segments_in

SEGMENT_BYTES = 64 << 20
MAX_BYTES = 4 << 30
MEASURE_SECONDS = 0.25
_log = logging.getLogger(__name__)
Found = Mapping[str, Sequence[Segment]]


class OutboxStatus(Value):
    """What lies in an outbox, and what its forwarder has seen. Counts are of the whole folder, since it was made."""

    waiting: int = Field(ge=0, description="Records that the log does not have yet.")
    rejected: int = Field(ge=0, description="Records that the log refused for good; kept with the reason.")
    size: int = Field(ge=0, description="Bytes of records on the disk, those set aside too.")
    killed: int = Field(ge=0, description="Emitting processes that ended without closing.")
    lost: int = Field(ge=0, description="Events they had taken and not made durable, where the number is known.")
    torn: int = Field(ge=0, description="Unfinished last groups that were dropped; none was acknowledged.")
    damaged: int = Field(ge=0, description="Places where acknowledged records could not be read.")
    gaps: tuple[Gap, ...] = Field(description="The newest of the killed processes that lost events, or may have.")


class Outbox:
    """The outbox in a folder. Safe for threads, processes and forks. Nothing is made before the first record.

    `segment_bytes`: a segment that is longer is followed by the next; a forwarded one is deleted as a whole.
    `max_bytes`: no more records are taken while the folder is larger.
    """

    def __init__(
        self,
        folder: Path,
        *,
        files: Files | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.folder = folder
        self._files = files or SystemFiles()
        self._segment_bytes = segment_bytes
        self._max_bytes = max_bytes
        self._positions = Positions(folder / "positions")
        self._rejected = Rejected(folder / "rejected.jsonl")
        self._damaged = folder / "damaged"
        self._former = folder / "outbox.db"
        self._turn = 0
        self.reset()

    def reset(self) -> None:
        """The state of a process that wrote nothing yet."""
        self._lock = threading.Lock()
        self._writer: SegmentWriter | None = None
        self._size = 0
        self._measured = float("-inf")

    @property
    def writer(self) -> SegmentWriter:
        """The writer of this process, whose number of issued events the emitter keeps."""
        if self._writer is None:
            self._writer = SegmentWriter(self.folder, self._files, self._segment_bytes)
        return self._writer

    def put(self, group: Sequence[tuple[int, Outgoing]], settled: int) -> None:
        """Keep a group of (sequence number, record); on disk when this returns.

        Sequence numbers rise; every one up to `settled` is acknowledged or reported as failed after this. Raises
        `Unavailable` when the disk or the outbox is full or fails, and then none of the group is kept.
        """
        with self._lock:
            if group:
                self._check_room()
            try:
                self._size += self.writer.put(group, settled)
            except OSError as error:
                raise Unavailable(
                    "the outbox cannot be written",
                    seen=self.folder,
                    rule=error.strerror or str(error),
                    fix="check that the disk has room and that the folder may be written",
                ) from error

    def waiting(self) -> int:
        """Records that the log does not have yet; 0 when the outbox was never used."""
        state = self._positions.load()
        return sum(self._waiting_in(segments, state) for segments in segments_in(self.folder).values())

    def rejected(self) -> int:
        """Records that the log refused for good; they stay in `rejected.jsonl` with the reason."""
        return self._rejected.count()

    def left_over(self) -> bool:
        """An earlier process left something: records, or only the trace of its end."""
        return bool(segments_in(self.folder) or left_behind(self.folder)) or self._former.exists()

    def status(self) -> OutboxStatus:
        """What lies here and what was seen."""
        state = self._positions.load()
        seen = {name: getattr(state, name) for name in ("killed", "lost", "torn", "damaged", "gaps")}
        return OutboxStatus(waiting=self.waiting(), rejected=self.rejected(), size=self._bytes(), **seen)

    def inspect(self) -> None:
        """Look into the end of each writer that died, once, and tell what it lost. Only for the holder of the lock."""
        found = segments_in(self.folder)
        state = self._inspected(found, {writer for writer, segments in found.items() if is_dead(segments)})
        # Those that did not come to a segment. Listed after their end is known, or a last segment could be overlooked.
        for writer, issued in left_behind(self.folder).items():
            if writer not in segments_in(self.folder) and writer not in state.ended:
                state = state.with_end(writer, 0, issued, closed=False)
                self._positions.save(state)
                forget(self.folder, writer)
        delete_unborn(self.folder)
        if self._former.exists():
            _log.error("%s is of a format that no release wrote: its events are not forwarded", self._former)

    def forward(self, log: EventLog) -> int:
        """Send the oldest batch and forget it; the number of records sent. Only for the holder of the lock.

        Raises `Unavailable` when the log cannot be reached; everything stays for the next call.
        """
        found = segments_in(self.folder)
        dead = {writer for writer, segments in found.items() if is_dead(segments)}
        state = self._inspected(found, dead)
        batch = self._oldest(found, dead, state)
        arrived: set[str] = set()
        if state.attempt is not None:
            arrived = _arrived(log, state.attempt.ends, {each.event_id for each in batch.outgoing})
        elif batch.outgoing:
            topics = sorted({each.topic for each in batch.outgoing})
            log.ensure_topics(topics)
            self._note(state, batch, {topic: log.end_offsets(topic) for topic in topics})
        missing = [each for each in batch.outgoing if each.event_id not in arrived]
        refused: list[tuple[Outgoing, str]] = []
        for topic, group in groupby(sorted(missing, key=_topic), key=_topic):
            refused += _send(log, topic, list(group))
        self._forget(state, batch, refused, found)
        return len(batch.outgoing) - len(refused)

    def close(self, settled: int = 0) -> None:
        """This process writes no more; every number up to `settled` was acknowledged or reported as failed."""
        with self._lock:
            if self._writer is not None:
                self._writer.close(settled)
                self._writer = None

    def abandon(self) -> None:
        """In the child of a fork: what was written belongs to the parent; the child writes segments of its own."""
        if self._writer is not None:
            self._writer.abandon()
        self.reset()

    def delete_segment(self, each: Segment) -> None:
        """Remove a segment whose records were all forwarded, or set aside as damaged."""
        each.path.unlink(missing_ok=True)

    def _check_room(self) -> None:
        if time.monotonic() - self._measured > MEASURE_SECONDS:
            self._size, self._measured = self._bytes(), time.monotonic()
        if self._size >= self._max_bytes:
            raise Unavailable(
                "the outbox is full",
                seen=f"{self._size} bytes in {self.folder}",
                rule=f"at most {self._max_bytes} bytes",
                fix="bring the log back; the outbox empties by itself then",
            )

    def _bytes(self) -> int:
        total = self._rejected.size()
        for each in self.folder.rglob("*.segment"):
            with suppress(FileNotFoundError):  # forwarded and deleted meanwhile
                total += each.stat().st_size
        return total

    def _waiting_in(self, segments: Sequence[Segment], state: State) -> int:
        with suppress(FileNotFoundError):  # forwarded and deleted meanwhile
            return waiting_in(segments, state.positions.get(segments[0].writer))
        return 0

    def _inspected(self, found: Found, dead: set[str]) -> State:
        state = self._positions.load()
        issued = left_behind(self.folder) if dead - state.ended else {}
        for writer in sorted(dead - state.ended):
            after, closed = end_of(found[writer])
            state = state.with_end(writer, after, issued.get(writer), closed=closed)
            self._positions.save(state)
        return state

    def _oldest(self, found: Found, dead: set[str], state: State) -> Batch:
        batch = Batch()
        if state.attempt is not None:
            for writer, until in state.attempt.through.items():
                if writer in found:
                    batch.read(found[writer], state.positions.get(writer), dead=writer in dead, until=until)
            return batch
        alive = [writer for writer in found if writer not in dead]
        self._turn += 1
        turn = self._turn % len(alive) if alive else 0
        # The dead first, so that what the next process emits comes after them; the living in turns.
        for writer in [*sorted(dead), *alive[turn:], *alive[:turn]]:
            if not batch.full:
                batch.read(found[writer], state.positions.get(writer), dead=writer in dead)
        return batch

    def _note(self, state: State, batch: Batch, ends: Mapping[str, dict[int, int]]) -> None:
        attempt = Attempt(through=batch.through, ends=dict(ends))
        self._positions.save(state.model_copy(update={"attempt": attempt}))

    def _forget(self, state: State, batch: Batch, refused: Sequence[tuple[Outgoing, str]], found: Found) -> None:
        for each, reason in refused:
            _log.error("event %s was refused by the log: %s", each.event_id, reason)
        self._rejected.add(refused)
        self._set_aside(batch.losses)
        after = state.model_copy(
            update={
                "attempt": None,
                "positions": {w: p for w, p in (state.positions | batch.through).items() if w in found},
                "ended": frozenset(state.ended & found.keys()),
                "torn": state.torn + sum(not loss.acknowledged for loss in batch.losses),
                "damaged": state.damaged + sum(loss.acknowledged for loss in batch.losses),
            }
        )
        if after != state:
            self._positions.save(after)
        self._delete_forwarded(found, after)

    def _set_aside(self, losses: Sequence[Loss]) -> None:
        for loss in losses:
            if not loss.acknowledged:
                _log.info("bytes %d to %d of %s are an unfinished group", loss.start, loss.end, loss.segment.path)
                continue
            _log.error("bytes %d to %d of %s are damaged", loss.start, loss.end, loss.segment.path)
            with suppress(OSError):  # it is there already, or cannot be: then what was recovered has to do
                self._damaged.mkdir(exist_ok=True)
                (self._damaged / loss.segment.path.name).hardlink_to(loss.segment.path)

    def _delete_forwarded(self, found: Found, state: State) -> None:
        deleted = 0
        for writer, segments in found.items():
            position = state.positions.get(writer)
            done = [each for each in segments if position is not None and each.number < position.number]
            for each in done:
                self.delete_segment(each)
            deleted += len(done)
            if len(done) == len(segments):
                forget(self.folder, writer)
        if deleted:
            sync_folder(self.folder)


def _topic(outgoing: Outgoing) -> str:
    return outgoing.topic


def _send(log: EventLog, topic: str, batch: Sequence[Outgoing]) -> list[tuple[Outgoing, str]]:
    """Append; records that the log refuses for good come back with the reason, so that they do not hold up others."""
    try:
        log.append(topic, [each.record for each in batch])
    except InputError as error:
        if len(batch) == 1:
            return [(batch[0], str(error))]
        half = len(batch) // 2
        return _send(log, topic, batch[:half]) + _send(log, topic, batch[half:])
    return []


def _arrived(log: EventLog, ends: Mapping[str, Mapping[int, int]], wanted: set[str]) -> set[str]:
    """Which of the wanted event ids stand in the log after the noted ends."""
    found: set[str] = set()
    for topic, partitions in ends.items():
        for partition, end in log.end_offsets(topic).items():
            offset = partitions.get(partition, 0)
            while offset < end and (page := log.read(topic, partition, offset)):
                found |= {dict(record.headers).get("ce_id", b"").decode("utf-8", "replace") for record in page}
                offset = page[-1].offset + 1
    return found & wanted
