"""A frame gives back the events it was made of, and a damaged one stays the record it is."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from streams.frames import CONTENT_TYPE, MAX_FRAME_BYTES, SLOTS, count, frames_of, pack, unpack
from streams.log import Record

headers = st.lists(st.tuples(st.text(max_size=12), st.binary(max_size=12)), max_size=4).map(tuple)
records = st.builds(Record, key=st.text(max_size=8), value=st.binary(max_size=30), headers=headers)


@given(st.lists(records, min_size=1, max_size=12))
def test_events_come_back_byte_for_byte(events: list[Record]):
    frame = pack(events)
    assert dict(frame.headers) == {"content-type": CONTENT_TYPE, "frame_count": str(len(events)).encode()}
    assert count(frame.headers) == len(events)
    assert unpack(frame) == events


@given(st.lists(records, min_size=2, max_size=4), st.data())
def test_a_damaged_frame_is_one_record_with_its_bytes(events: list[Record], data: st.DataObject):
    frame = pack(events)
    cut = data.draw(st.integers(0, len(frame.value) - 1))
    for value in (frame.value[:cut], frame.value + b"x"):
        damaged = Record(frame.key, value, frame.headers)
        assert unpack(damaged) == [damaged]


@given(st.binary(max_size=40))
def test_any_bytes_under_the_name_of_a_frame_are_taken(value: bytes):
    stranger = Record("", value, (("content-type", CONTENT_TYPE), ("frame_count", b"2")))
    head = b'{"names":[[]],"events":[0,0,0]}'
    wrong_count = struct.pack("<I", len(head)) + head + struct.pack("<6I", *[0] * 6)
    assert unpack(stranger) == [stranger]
    assert len(unpack(Record("", wrong_count, stranger.headers))) == 1


def test_what_is_no_frame_is_itself():
    for marks in ((), (("content-type", b"application/json"),), (("content-type", CONTENT_TYPE),)):
        plain = Record("k", b"{}", marks)
        assert count(marks) == 1
        assert unpack(plain) == [plain]
    for number in (b"0", b"-1", b"257", b"99999999999", "²".encode(), b""):
        assert count((("content-type", CONTENT_TYPE), ("frame_count", number))) == 1


def test_runs_keep_the_order_and_the_limits():
    small = [Record(str(index), b"x") for index in range(SLOTS * 2 + 5)]
    runs = list(frames_of(small))
    assert [len(run) for run in runs] == [SLOTS, SLOTS, 5]
    assert [each for run in runs for each in run] == small
    long = [Record("k", bytes(MAX_FRAME_BYTES // 2 + 1)), *small[:3], Record("k", bytes(MAX_FRAME_BYTES * 2))]
    assert [len(run) for run in frames_of(long)] == [4, 1]
    assert list(frames_of([])) == []
