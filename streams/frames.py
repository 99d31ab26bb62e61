"""Frames: several events of one partition in one record, for topics that carry many small events.

The public form of every topic is one CloudEvents record an event. A frame is an opt-in form of the framable topics
(setting `log.frames`): it costs the client and the broker one record instead of many. It has content type
`application/vnd.quillstream.frame`, the number of its events in the header `frame_count`, no key, and as its value

    u32 length of the head, the head, u32 lengths…, bytes…

all little-endian. The head is JSON: `names` is a list of lists of header names, `events` says for each event which of
them are its headers. The bytes of each event are its key, the values of its headers and its value; the lengths are
theirs, in the same order. The record batch around it is what compresses.

Offsets: a record of a framable topic takes `SLOTS` offsets, whatever form it has, and its events the last ones of
them. So each event has an offset of its own, they rise, and the one after the last event is that of the next record.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

from streams.events import LLM_EVALUATIONS, LLM_INTERACTIONS
from streams.log import Record

CONTENT_TYPE = b"application/vnd.quillstream.frame"
COUNT_HEADER = "frame_count"
FRAMABLE = frozenset({LLM_INTERACTIONS, LLM_EVALUATIONS})
"""Topics that may hold frames."""
SLOTS = 256
"""Offsets a record takes in a framable topic, and so the most events a frame has."""
MAX_FRAME_BYTES = 512 << 10
"""A frame takes no further event beyond this length, so that frames stay far below the record limit."""
_LENGTH = struct.Struct("<I")
_MARK = ("content-type", CONTENT_TYPE)


def frames_of(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """The records, in order, in runs that fit a frame each."""
    start, size = 0, 0
    for index, record in enumerate(records):
        if index > start and (index - start == SLOTS or size + len(record.value) > MAX_FRAME_BYTES):
            yield records[start:index]
            start, size = index, 0
        size += len(record.value)
    if records:
        yield records[start:]


def pack(records: Sequence[Record]) -> Record:
    """One record of 1 to `SLOTS` records."""
    names_of: dict[tuple[str, ...], int] = {}
    events: list[int] = []
    parts: list[bytes] = []
    for record in records:
        names, values = zip(*record.headers, strict=True) if record.headers else ((), ())
        events.append(names_of.setdefault(names, len(names_of)))
        parts.append(record.key.encode())
        parts += values
        parts.append(record.value)
    head = json.dumps({"names": list(names_of), "events": events}, ensure_ascii=False, separators=(",", ":")).encode()
    lengths = struct.pack(f"<{len(parts)}I", *map(len, parts))
    value = b"".join((_LENGTH.pack(len(head)), head, lengths, *parts))
    return Record("", value, (_MARK, (COUNT_HEADER, str(len(records)).encode())))


def count(headers: Sequence[tuple[str, bytes]]) -> int:
    """How many events a record of a framable topic says it holds; 1 when it is no frame."""
    if len(headers) != 2 or headers[0] != _MARK or headers[1][0] != COUNT_HEADER:
        return 1
    text = headers[1][1]
    return int(text) if text.isdigit() and len(text) < 5 and 0 < int(text) <= SLOTS else 1


def unpack(record: Record) -> list[Record]:
    """The events of a record of a framable topic: of a frame, or itself when it is none or is damaged.

    So what cannot be read reaches its consumer as it came, and the dead letters with its bytes.
    """
    number = count(record.headers)
    if number == 1 and record.headers[:1] != (_MARK,):
        return [record]
    try:
        events = _events(record.value)
    except (ValueError, LookupError, TypeError, RecursionError, struct.error):
        return [record]
    return events if len(events) == number else [record]


def _events(value: bytes) -> list[Record]:
    start = _LENGTH.size + _LENGTH.unpack_from(value)[0]
    head = json.loads(value[_LENGTH.size : start])
    names = [tuple(each) for each in head["names"]]
    number = sum(len(names[event]) + 2 for event in head["events"])
    first = start + _LENGTH.size * number
    marks = list(accumulate(struct.unpack_from(f"<{number}I", value, start), initial=first))
    if marks[-1] != len(value):
        raise ValueError("the lengths do not add up to the bytes")
    parts = [value[left:right] for left, right in pairwise(marks)]
    records: list[Record] = []
    place = 0
    for event in head["events"]:
        last = place + 1 + len(names[event])
        headers = tuple(zip(names[event], parts[place + 1 : last], strict=True))
        records.append(Record(parts[place].decode(), parts[last], headers))
        place = last + 1
    return records
