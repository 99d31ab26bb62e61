"""A frame gives back the events it was made of, and a damaged one stays the record it is."""

from __future__ import annotations

import json
import struct

from hypothesis import given
from hypothesis import strategies as st

from streams.frames import CONTENT_TYPE, MAX_FRAME_BYTES, SLOTS, count, frames_of, pack, unpack
from streams.log import Record

cells = st.sampled_from([b"", b"same", b"size"]) | st.binary(max_size=12)


@st.composite
def runs(draw: st.DrawFn) -> list[Record]:
    """Records with the same header names, as a frame takes them."""
    names = draw(st.lists(st.text(max_size=6), max_size=4))
    headers = st.tuples(*[cells for _ in names]).map(lambda values: tuple(zip(names, values, strict=True)))
    return draw(st.lists(st.builds(Record, st.text(max_size=8), cells, headers), min_size=2, max_size=12))


def unpacked(record: Record) -> list[Record]:
    return [Record(*event) for event in unpack(record)]


@given(runs())
def test_events_come_back_byte_for_byte(events: list[Record]):
    frame = pack(events)
    assert dict(frame.headers) == {"content-type": CONTENT_TYPE, "frame_count": str(len(events)).encode()}
    assert count(frame.headers) == len(events)
    assert unpacked(frame) == events


@given(runs(), st.data())
def test_a_damaged_frame_is_one_record_with_its_bytes(events: list[Record], data: st.DataObject):
    frame = pack(events)
    cut = data.draw(st.integers(0, len(frame.value) - 1))
    for value in (frame.value[:cut], frame.value + b"x"):
        damaged = Record(frame.key, value, frame.headers)
        assert unpacked(damaged) == [damaged]


HEADS = [
    {"columns": [{"name": ""}, {"name": ""}]},
    {"columns": [{"name": "", "once": 1}, {"name": "", "each": -1}]},
    {"columns": [{"name": "", "each": 10**12}, {"name": "", "once": 0}]},
    {"columns": [{"name": "", "once": 0.5}, {"name": "", "once": "1"}]},
    {"columns": [{"once": 0}, {}]},
    {"columns": [{"name": "", "once": 0}]},
    {"columns": "no"},
    ["columns"],
]


@given(st.binary(max_size=40) | st.sampled_from(HEADS))
def test_any_bytes_under_the_name_of_a_frame_are_taken(head: bytes | object):
    text = json.dumps(head).encode() if not isinstance(head, bytes) else b""
    value = head if isinstance(head, bytes) else struct.pack("<I", len(text)) + text + bytes(12)
    stranger = Record("", value, (("content-type", CONTENT_TYPE), ("frame_count", b"2")))
    assert unpacked(stranger) == [stranger]


def test_what_is_no_frame_is_itself():
    for marks in ((), (("content-type", b"application/json"),), (("content-type", CONTENT_TYPE),)):
        plain = Record("k", b"{}", marks)
        assert count(marks) == 1
        assert unpacked(plain) == [plain]
    for number in (b"0", b"-1", b"257", b"99999999999", "²".encode(), b""):
        assert count((("content-type", CONTENT_TYPE), ("frame_count", number))) == 1


def test_runs_keep_the_order_and_the_limits():
    small = [Record(str(index), b"x") for index in range(SLOTS * 2 + 5)]
    runs = list(frames_of(small))
    assert [len(run) for run in runs] == [SLOTS, SLOTS, 5]
    assert [each for run in runs for each in run] == small
    long = [Record("k", bytes(MAX_FRAME_BYTES // 2 + 1)), *small[:3], Record("k", bytes(MAX_FRAME_BYTES * 2))]
    assert [len(run) for run in frames_of(long)] == [4, 1]
    mixed = [*small[:2], Record("k", b"", (("n", b""),)), *small[2:3]]
    assert [len(run) for run in frames_of(mixed)] == [2, 1, 1]
    assert list(frames_of([])) == []
