"""Append-only files of checksummed records: what the outbox lies in.

A segment is named `WRITER-NUMBER.segment`. Its header says how far the segment before it is valid and, in a mark that
is rewritten in place after each group, how far it is valid itself. Then come the records: a marker, the length, a
checksum and the sequence number of the event, and the event. Checksums are CRC-32C started from the file's name, so no
record of another file passes for one of this. The marker holds bytes that UTF-8 has not, so no text passes for one.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

from crc32c import crc32c

from streams.log import Record

BLOCK = 1 << 20
READS = 3
UNBORN = ".new"
"""Ends the hidden name of a segment that is being made."""
_NAME = re.compile(r"([0-9a-f]{32})-(\d{8})\.segment")
_MARKER = b"\xffQ\xfer"
_FRAME = struct.Struct("<4sIIQ")  # marker, length of the body, checksum, sequence number
_CHECKED = struct.Struct("<IQ")
_FIXED = struct.Struct("<8sQI")  # format, valid bytes of the segment before, checksum
_MARK = struct.Struct("<QQQBI")  # synced, settled, records, closed, checksum
_FORMAT = b"QUILLOB1"
FIRST = _FIXED.size + _MARK.size
"""Offset of the first record."""


class Outgoing(NamedTuple):
    """A record and where it goes."""

    event_id: str
    topic: str
    record: Record


class Segment(NamedTuple):
    """A segment file."""

    path: Path
    writer: str
    number: int

    @property
    def salt(self) -> int:
        """What its checksums start from."""
        return _checksum(f"{self.writer}-{self.number}".encode())


class Mark(NamedTuple):
    """What a segment says of itself."""

    synced: int = FIRST
    """Bytes that are valid: all groups up to here were synced to the disk before they were acknowledged."""
    settled: int = 0
    """Sequence number up to which every event was acknowledged or reported as failed."""
    records: int = 0
    """Records in those bytes."""
    closed: bool = False
    """The writer ended in order."""


class Entry(NamedTuple):
    """An intact record, and the offset after it."""

    sequence: int
    outgoing: Outgoing
    end: int


class Damage(NamedTuple):
    """Bytes that hold no intact record, up to the next one that is."""

    start: int
    end: int


def segment(folder: Path, writer: str, number: int) -> Segment:
    """The segment of that name, whether or not it exists."""
    return Segment(folder / f"{writer}-{number:08}.segment", writer, number)


def segments_in(folder: Path) -> dict[str, list[Segment]]:
    """Writer to its segments in order, the oldest writer first. Empty when there is no folder."""
    found: dict[str, list[Segment]] = {}
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - asked for with every batch; paths only for what matches
    except FileNotFoundError:
        return found
    for name in names:
        if match := _NAME.fullmatch(name):
            found.setdefault(match[1], []).append(Segment(folder / name, match[1], int(match[2])))
    return found


def head(segment: Segment, previous: int, mark: Mark) -> bytes:
    """The header of a segment; `previous` is the number of valid bytes of the one before, 0 for the first."""
    fixed = _FORMAT + previous.to_bytes(8, "little")
    return fixed + _checksum(fixed, segment.salt).to_bytes(4, "little") + marked(segment, mark)


def marked(segment: Segment, mark: Mark) -> bytes:
    """The mark as it lies at `MARK_AT`."""
    packed = _MARK.pack(*mark, 0)[:-4]
    return packed + _checksum(packed, segment.salt).to_bytes(4, "little")


MARK_AT = _FIXED.size


def read_head(file: int, segment: Segment) -> tuple[int | None, Mark | None]:
    """Valid bytes of the segment before, and the mark; None for either that is damaged."""
    salt = segment.salt
    previous, mark = _parsed(os.pread(file, FIRST, 0), salt)
    for _ in range(READS):
        if mark is not None:
            break
        previous, mark = _parsed(os.pread(file, FIRST, 0), salt)  # it may just have been written
    return previous, mark


def _parsed(data: bytes, salt: int) -> tuple[int | None, Mark | None]:
    if len(data) < FIRST:
        return None, None
    fixed, mark = data[:MARK_AT], data[MARK_AT:]
    previous, known = None, None
    if fixed.startswith(_FORMAT) and crc32c(fixed[:-4], salt) == _FIXED.unpack(fixed)[2]:
        previous = _FIXED.unpack(fixed)[1]
    synced, settled, records, closed, checksum = _MARK.unpack(mark)
    if crc32c(mark[:-4], salt) == checksum:
        known = Mark(synced, settled, records, closed == 1)
    return previous, known


def packed(sequence: int, outgoing: Outgoing, salt: int) -> tuple[bytes, bytes]:
    """A record as it lies in a segment with that salt, in two parts."""
    event_id, topic, record = outgoing
    texts = [event_id.encode(), topic.encode(), record.key.encode()]
    for name, value in record.headers:
        texts += (name.encode(), value)
    count = len(texts)
    lengths = struct.pack(f"<{count + 1}I", count, *map(len, texts))
    body = b"".join((lengths, *texts, record.value))
    checked = _CHECKED.pack(len(body), sequence)
    return _FRAME.pack(_MARKER, len(body), crc32c(body, crc32c(checked, salt)), sequence), body


def scan(file: int, salt: int, start: int, end: int) -> Iterator[Entry | Damage]:
    """What lies between two offsets: intact records, and damage wherever there is none up to the next one."""
    window = _Window(file)
    offset = start
    while offset < end:
        found = _entry(window, salt, offset, end) or Damage(offset, _next_intact(window, salt, offset + 1, end))
        yield found
        offset = found.end


class _Window:
    """A file read by blocks."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._data = b""
        self._start = 0

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from an offset on; fewer at the end of the file."""
        if offset < self._start or offset + size > self._start + len(self._data):
            self._data, self._start = os.pread(self._file, max(size, BLOCK), offset), offset
        at = offset - self._start
        return self._data[at : at + size]


def _entry(window: _Window, salt: int, offset: int, end: int) -> Entry | None:
    frame = window.read(offset, _FRAME.size)
    if len(frame) < _FRAME.size:
        return None
    marker, length, checksum, sequence = _FRAME.unpack(frame)
    after = offset + _FRAME.size + length
    if marker != _MARKER or after > end:
        return None
    body = window.read(offset + _FRAME.size, length)
    if len(body) < length or crc32c(body, crc32c(_CHECKED.pack(length, sequence), salt)) != checksum:
        return None
    return Entry(sequence, _unpacked(body), after)


def _next_intact(window: _Window, salt: int, offset: int, end: int) -> int:
    while offset < end:
        data = window.read(offset, min(BLOCK, end - offset))
        at = data.find(_MARKER)
        if at >= 0:
            if _entry(window, salt, offset + at, end):
                return offset + at
            offset += at + 1
        elif offset + len(data) >= end or len(data) < len(_MARKER):
            return end
        else:
            offset += len(data) - len(_MARKER) + 1  # a marker may begin in the last bytes
    return end


def _checksum(data: bytes, salt: int = 0) -> int:
    return int(crc32c(data, salt))


def _unpacked(body: bytes) -> Outgoing:
    (count,) = struct.unpack_from("<I", body)
    ends = list(accumulate(struct.unpack_from(f"<{count}I", body, 4), initial=4 + 4 * count))
    event_id, topic, key, *headers = [body[start:end] for start, end in pairwise(ends)]
    pairs = tuple([(_text(name), value) for name, value in zip(headers[::2], headers[1::2], strict=True)])
    return Outgoing(event_id.decode(), _text(topic), Record(key.decode(), body[ends[-1] :], pairs))


@lru_cache(256)
def _text(name: bytes) -> str:
    # Names of headers and topics are few, and the same in every record.
    return name.decode()
