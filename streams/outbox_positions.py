"""How far each writer's records were forwarded, and what was seen on the way: kept durably by who forwards.

The file holds the state twice and is overwritten in turns, in place. A write that was torn leaves the other one, and
a full disk does not keep the forwarder from making room.
"""

from __future__ import annotations

import logging
import os
import struct
from pathlib import Path
from typing import NamedTuple

from crc32c import crc32c
from pydantic import Field, ValidationError

from infra.artifacts import write_atomic
from infra.errors import Unavailable
from infra.identity import Value

SLOT = 1 << 16
GAPS = 20
_HEAD = struct.Struct("<QII")  # serial number, length, checksum
_log = logging.getLogger(__name__)


class Position(NamedTuple):
    """A place in a writer's series."""

    number: int
    """Segment."""
    offset: int
    """Offset in it."""
    records: int
    """Records of the segment before it."""


class Attempt(Value):
    """A batch that was being sent: whether it arrived is not known before the log was searched."""

    through: dict[str, Position] = Field(description="Writer to the position after its last record in the batch.")
    ends: dict[str, dict[int, int]] = Field(description="Topic to the ends of its partitions before it was sent.")


class Gap(Value):
    """What a process that was killed had taken and not made durable."""

    writer: str = Field(description="Names the process; its first 12 hex digits are the time it began to emit.")
    after: int = Field(ge=0, description="Sequence number up to which every event is durable or was reported.")
    lost: int | None = Field(description="Events lost after it. None when not known: at most those of one window.")


class State(Value):
    """What the forwarder knows."""

    positions: dict[str, Position] = Field(default_factory=dict, description="Writer to where its next record lies.")
    attempt: Attempt | None = Field(None, description="The batch under way.")
    ended: frozenset[str] = Field(frozenset(), description="Writers whose end was looked into.")
    gaps: tuple[Gap, ...] = Field((), description=f"The last {GAPS} ends that lost events, or may have.")
    killed: int = Field(0, ge=0, description="Processes that ended without closing.")
    lost: int = Field(0, ge=0, description="Events they had taken and not made durable, where the number is known.")
    torn: int = Field(0, ge=0, description="Unfinished last groups that were dropped; none was acknowledged.")
    damaged: int = Field(0, ge=0, description="Places where acknowledged records could not be read.")

    def with_end(self, writer: str, after: int, issued: int | None, *, closed: bool) -> State:
        """The state in which a writer is known to be dead: closed in order, or killed after that sequence number."""
        if closed:
            return self.model_copy(update={"ended": self.ended | {writer}})
        lost = None if issued is None else max(0, issued - after)
        if lost is None:
            _log.warning("an emitting process was killed: its events after number %d, if any, are lost", after)
        elif lost:
            _log.warning("an emitting process was killed: its events %d to %d are lost", after + 1, after + lost)
        gaps = self.gaps if lost == 0 else (*self.gaps, Gap(writer=writer, after=after, lost=lost))[-GAPS:]
        ended = self.ended | {writer}
        update = {"ended": ended, "gaps": gaps, "killed": self.killed + 1, "lost": self.lost + (lost or 0)}
        return self.model_copy(update=update)


class Positions:
    """The file of a state. For the holder of the forwarder's lock; others may only load."""

    def __init__(self, file: Path) -> None:
        self._path = file

    def load(self) -> State:
        """The newest state that is intact; a fresh one when there is no file."""
        return self._newest()[1]

    def save(self, state: State) -> None:
        """Keep a state; on the disk when this returns. Raises `Unavailable`, and then the one before stands."""
        text = state.model_dump_json().encode()
        try:
            slot = self._path.stat().st_size // 2 if self._path.exists() else 0
            if len(text) + _HEAD.size > slot:
                slot = max(SLOT, 2 * (len(text) + _HEAD.size))
                # Room for both is taken at once, so that no later write needs any.
                write_atomic(self._path, _slot(2, text).ljust(slot, b"\0") + bytes(slot))
                return
            serial = self._newest()[0] + 1
            file = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.pwrite(file, _slot(serial, text), serial % 2 * slot)
                os.fdatasync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise Unavailable("the outbox cannot be written", seen=self._path, rule=str(error)) from error

    def _newest(self) -> tuple[int, State]:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return 0, State()
        except OSError as error:
            raise Unavailable("the outbox cannot be read", seen=self._path, rule=str(error)) from error
        half = len(data) // 2
        found = [each for each in (_read(data[:half]), _read(data[half:])) if each]
        if found:
            return max(found, key=lambda each: each[0])
        _log.error("the positions of the outbox are damaged: its records are sent again, at %s", self._path)
        return 0, State(damaged=1)


def _slot(serial: int, text: bytes) -> bytes:
    checksum = crc32c(text, serial & 0xFFFFFFFF)
    return _HEAD.pack(serial, len(text), checksum) + text


def _read(data: bytes) -> tuple[int, State] | None:
    if len(data) < _HEAD.size:
        return None
    serial, length, checksum = _HEAD.unpack_from(data)
    text = data[_HEAD.size : _HEAD.size + length]
    if not length or crc32c(text, serial & 0xFFFFFFFF) != checksum:
        return None
    try:
        return serial, State.model_validate_json(text)
    except ValidationError:
        return None
