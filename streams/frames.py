"""Frames: several events of one partition in one record, for topics that carry many small events.

The public form of every topic is one CloudEvents record an event. A frame is an opt-in form of the framable topics
(setting `log.frames`): it costs the client and the broker one record instead of many. It has content type
`application/vnd.quillstream.frame`, the number of its events in the header `frame_count`, no key, and as its value

    u32 length of the head, the head, u32 lengths…, bytes…

all little-endian. The events of a frame have the same header names, and lie in it column by column: their keys, the
values of each header, and their values. The head is JSON, {"columns": [{"name": …}, …]} in that order (the first
and the last have the name ""), where a column has `"once": n` when all its cells are the same n bytes and are there
once, `"each": n` when each has n bytes, and neither when the lengths tell: as many as the frame has events, for each
such column in turn. The record batch around a frame is what compresses; columns are what compresses well.

Offsets: a record of a framable topic takes `SLOTS` offsets, whatever form it has, and its events the last ones of
them. So each event has an offset of its own, they rise, and the one after the last event is that of the next record.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

from streams.events import LLM_EVALUATIONS, LLM_INTERACTIONS
from streams.log import Record

CONTENT_TYPE = b"application/vnd.quillstream.frame"
COUNT_HEADER = "frame_count"
FRAMABLE = frozenset({LLM_INTERACTIONS, LLM_EVALUATIONS})
"""Topics that may hold frames."""
Event = tuple[str, bytes, tuple[tuple[str, bytes], ...]]
"""Key, value and headers: a record that is not made yet."""
SLOTS = 256
"""Offsets a record takes in a framable topic, and so the most events a frame has."""
MAX_FRAME_BYTES = 512 << 10
"""A frame takes no further event beyond this length, so that frames stay far below the record limit."""
_LENGTH = struct.Struct("<I")
_MARK = ("content-type", CONTENT_TYPE)


def frames_of(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """The records, in order, in runs that fit a frame each."""
    start, size, names = 0, 0, None
    for index, record in enumerate(records):
        its_names = [name for name, _ in record.headers]
        if index > start and (
            index - start == SLOTS or size + len(record.value) > MAX_FRAME_BYTES or its_names != names
        ):
            yield records[start:index]
            start, size = index, 0
        size += len(record.value)
        names = its_names
    if records:
        yield records[start:]


def pack(records: Sequence[Record]) -> Record:
    """One record of 1 to `SLOTS` records that have the same header names."""
    names = ["", *(name for name, _ in records[0].headers), ""]
    cells = zip(
        *[[each.key.encode(), *[value for _, value in each.headers], each.value] for each in records], strict=True
    )
    columns: list[dict[str, Any]] = []
    lengths: list[int] = []
    parts: list[bytes] = []
    for name, column in zip(names, cells, strict=True):
        sizes = [len(cell) for cell in column]
        described: dict[str, Any] = {"name": name}
        if column.count(column[0]) == len(column):
            described["once"] = sizes[0]
            parts.append(column[0])
        else:
            if sizes.count(sizes[0]) == len(sizes):
                described["each"] = sizes[0]
            else:
                lengths += sizes
            parts += column
        columns.append(described)
    head = json.dumps({"columns": columns}, ensure_ascii=False, separators=(",", ":")).encode()
    table = struct.pack(f"<{len(lengths)}I", *lengths)
    value = b"".join((_LENGTH.pack(len(head)), head, table, *parts))
    return Record("", value, (_MARK, (COUNT_HEADER, str(len(records)).encode())))


def count(headers: Sequence[tuple[str, bytes]]) -> int:
    """How many events a record of a framable topic says it holds; 1 when it is no frame."""
    if len(headers) != 2 or headers[0] != _MARK or headers[1][0] != COUNT_HEADER:
        return 1
    text = headers[1][1]
    return int(text) if text.isdigit() and len(text) < 5 and 0 < int(text) <= SLOTS else 1


def unpack(record: Record) -> Sequence[Event]:
    """The events of a record of a framable topic: of a frame, or itself when it is none or is damaged.

    So what cannot be read reaches its consumer as it came, and the dead letters with its bytes.
    """
    whole = (record.key, record.value, record.headers)
    number = count(record.headers)
    if number == 1 and record.headers[:1] != (_MARK,):
        return (whole,)
    try:
        return _events(record.value, number)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error):
        return (whole,)


def _events(value: bytes, number: int) -> list[Event]:
    start = _LENGTH.size + _LENGTH.unpack_from(value)[0]
    columns = json.loads(value[_LENGTH.size : start])["columns"]
    free = sum("once" not in column and "each" not in column for column in columns)
    lengths = struct.unpack_from(f"<{free * number}I", value, start)
    place, read = start + free * number * _LENGTH.size, 0
    cells: list[list[bytes]] = []
    for column in columns:
        if "once" in column:
            sizes = [column["once"]]
        elif "each" in column:
            sizes = [column["each"]] * number
        else:
            sizes, read = list(lengths[read : read + number]), read + number
        marks = list(accumulate(sizes, initial=place))
        if min(sizes) < 0 or marks[-1] > len(value):
            raise ValueError("a column is longer than the frame")
        found = [value[left:right] for left, right in pairwise(marks)]
        cells.append(found * number if "once" in column else found)
        place = marks[-1]
    if place != len(value):
        raise ValueError("the columns do not add up to the frame")
    names = [str(column["name"]) for column in columns[1:-1]]
    keys, *headers, values = cells
    rows = zip(*headers, strict=True) if headers else [()] * number
    return [
        (key.decode(), content, tuple(zip(names, row, strict=True)))
        for key, row, content in zip(keys, rows, values, strict=True)
    ]
