"""A crash anywhere between the outbox and the log neither loses a record nor stores it twice."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from infra.errors import InputError, Unavailable
from streams.codec import encode
from streams.embedded import EmbeddedLog
from streams.events import LLM_FEEDBACK, OPS_RELEASES, Event, FeedbackGiven, ReleaseChanged
from streams.log import Record
from streams.outbox import MEASURE_SECONDS, Outbox
from streams.outbox_positions import Position, Positions, State
from streams.outbox_reading import BATCH, opened
from streams.segments import FIRST, UNBORN, Outgoing, scan, segments_in


def put(outbox: Outbox, records: Sequence[Outgoing]) -> None:
    """Put records under the next sequence numbers."""
    issued = outbox.writer.issued.numbers
    group = list(enumerate(records, issued[0] + 1))
    issued[0] += len(records)
    outbox.put(group, issued[0])


def outgoing(number: int) -> Outgoing:
    payload = FeedbackGiven(interaction_id=f"i{number}", comment=str(number))
    return Outgoing(f"e{number}", LLM_FEEDBACK, encode(Event(id=f"e{number}", data=payload)))


def release(number: int) -> Outgoing:
    payload = ReleaseChanged(channel="c", release_id=str(number), action="promoted", reason="", actor="")
    return Outgoing(f"r{number}", OPS_RELEASES, encode(Event(id=f"r{number}", data=payload)))


class FaultyLog(EmbeddedLog):
    """Fails as `fault` says, called with the records to append and the append itself."""

    fault: Callable[[Sequence[Record], Callable[[], object]], None] | None = None

    def append(self, topic: str, records: Sequence[Record]) -> list[tuple[int, int]]:
        if self.fault is not None:
            self.fault(records, lambda: EmbeddedLog.append(self, topic, records))
        return super().append(topic, records)


@pytest.fixture
def log(tmp_path: Path) -> FaultyLog:
    return FaultyLog(tmp_path / "log.db")


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    outbox = Outbox(tmp_path / "outbox")
    yield outbox
    outbox.close()


def ids(log: FaultyLog, topic: str = LLM_FEEDBACK) -> list[str]:
    records = [each for partition in log.end_offsets(topic) for each in log.read(topic, partition, 0)]
    return sorted(dict(each.headers)["ce_id"].decode() for each in records)


def forward_all(outbox: Outbox, log: FaultyLog) -> int:
    sent = 0
    while outbox.waiting():
        sent += outbox.forward(log)
    return sent


def test_everything_goes_once_in_batches(outbox: Outbox, log: FaultyLog):
    number = BATCH * 2 + 3
    put(outbox, [outgoing(each) for each in range(number)])
    assert outbox.waiting() == number
    assert forward_all(outbox, log) == number
    assert ids(log) == sorted(f"e{each}" for each in range(number))
    assert outbox.forward(log) == 0


def test_a_crash_after_the_log_took_the_batch_sends_nothing_again(outbox: Outbox, log: FaultyLog, tmp_path: Path):
    log.append(LLM_FEEDBACK, [outgoing(100).record])
    put(outbox, [outgoing(0), outgoing(1), release(0)])

    def taken_then_gone(records: Sequence[Record], append: Callable[[], object]) -> None:
        append()
        raise Unavailable("the answer got lost")

    log.fault = taken_then_gone
    for _ in (LLM_FEEDBACK, OPS_RELEASES):
        with pytest.raises(Unavailable):
            Outbox(tmp_path / "outbox").forward(log)
    log.fault = None
    put(outbox, [outgoing(2)])
    assert forward_all(Outbox(tmp_path / "outbox"), log) == 4
    assert ids(log) == ["e0", "e1", "e100", "e2"]
    assert ids(log, OPS_RELEASES) == ["r0"]


def test_a_crash_before_the_log_took_the_batch_sends_it_then(outbox: Outbox, log: FaultyLog):
    put(outbox, [outgoing(0)])

    def gone(records: Sequence[Record], append: Callable[[], object]) -> None:
        raise Unavailable("away")

    log.fault = gone
    with pytest.raises(Unavailable):
        outbox.forward(log)
    log.fault = None
    assert forward_all(outbox, log) == 1
    assert ids(log) == ["e0"]


def test_a_record_the_log_refuses_does_not_hold_up_the_others(outbox: Outbox, log: FaultyLog):
    put(outbox, [outgoing(each) for each in range(5)])

    def picky(records: Sequence[Record], append: Callable[[], object]) -> None:
        if any(each.key == "i3" for each in records):
            raise InputError("too long for this broker")

    log.fault = picky
    assert outbox.forward(log) == 4
    assert ids(log) == ["e0", "e1", "e2", "e4"]
    assert (outbox.waiting(), outbox.rejected()) == (0, 1)


def test_an_unused_outbox_makes_no_file(tmp_path: Path, outbox: Outbox):
    assert (outbox.waiting(), outbox.rejected()) == (0, 0)
    assert list(tmp_path.iterdir()) == []


def numbered(first: int, number: int) -> list[tuple[int, Outgoing]]:
    return [(each, outgoing(each)) for each in range(first, first + number)]


def test_records_come_back_as_they_were(tmp_path: Path):
    strange = Record(key="ключ", value=b"\xffQ\xfer\0" * 9, headers=(("ce_id", b"x"), ("ü", b""), ("x", b"\xff\0")))
    empty = Record(key="", value=b"", headers=())
    group = [(7, Outgoing("é", "a.topic", strange)), (9, Outgoing("", "t", empty))]
    outbox = Outbox(tmp_path)
    outbox.put(group, 9)
    (each,) = segments_in(tmp_path)[outbox.writer.writer]
    with opened(each) as file:
        found = list(scan(file, each.salt, FIRST, each.path.stat().st_size))
    assert [entry[:2] for entry in found] == group
    outbox.close()


def test_forwarded_segments_are_deleted_and_the_last_one_when_its_writer_has_ended(log: FaultyLog, tmp_path: Path):
    outbox = Outbox(tmp_path / "outbox", segment_bytes=5_000)
    for first in range(0, 100, 10):
        outbox.put(numbered(first, 10), first + 9)
    assert len(segments_in(outbox.folder)[outbox.writer.writer]) > 3
    assert (outbox.waiting(), forward_all(outbox, log)) == (100, 100)
    assert len(segments_in(outbox.folder)[outbox.writer.writer]) == 1
    outbox.close(100)
    assert Outbox(outbox.folder).forward(log) == 0
    assert not outbox.left_over()
    assert outbox.status().killed == 0
    assert ids(log) == sorted(f"e{each}" for each in range(100))


def test_the_records_of_a_writer_that_ended_go_before_those_of_the_living(log: FaultyLog, tmp_path: Path):
    first, second, third = (Outbox(tmp_path / "outbox") for _ in range(3))
    third.put([(1, outgoing(30))], 1)
    for number in range(3):
        first.put([(number + 1, outgoing(10 + number))], number + 1)
        second.put([(number + 1, outgoing(20 + number))], number + 1)
    second.close(3)
    taken: list[str] = []

    def noted(records: Sequence[Record], append: Callable[[], object]) -> None:
        taken.extend(each.key for each in records)

    log.fault = noted
    assert forward_all(first, log) == 7
    assert taken[:3] == ["i20", "i21", "i22"]
    assert [key for key in taken if key < "i20"] == ["i10", "i11", "i12"]
    first.close(3)
    third.close(1)


def test_a_group_that_was_not_synced_is_not_sent(outbox: Outbox, log: FaultyLog):
    outbox.put(numbered(1, 2), 2)
    outbox.writer.write_group(numbered(3, 2))
    assert outbox.waiting() == 2
    assert forward_all(outbox, log) == 2
    outbox.put(numbered(3, 2), 4)
    assert forward_all(outbox, log) == 2
    assert ids(log) == ["e1", "e2", "e3", "e4"]


def test_a_full_outbox_takes_no_more_until_it_was_forwarded(log: FaultyLog, tmp_path: Path):
    outbox = Outbox(tmp_path / "outbox", segment_bytes=5_000, max_bytes=20_000)

    def fill() -> None:
        for sequence in range(1, 1_000, 5):
            outbox.put(numbered(sequence, 5), sequence + 4)

    with pytest.raises(Unavailable, match="the outbox is full"):
        fill()
    kept = outbox.waiting()
    assert 0 < kept < 100
    assert outbox.status().size < 25_000
    assert forward_all(outbox, log) == kept
    time.sleep(2 * MEASURE_SECONDS)
    outbox.put(numbered(kept + 1, 5), kept + 5)
    outbox.close()


def test_what_was_rejected_is_kept_with_the_reason(outbox: Outbox, log: FaultyLog):
    def picky(records: Sequence[Record], append: Callable[[], object]) -> None:
        if any(each.key in {"i2", "i5"} for each in records):
            raise InputError("too long for this broker")

    log.fault = picky
    outbox.put(numbered(0, 7), 6)
    assert outbox.forward(log) == 5
    rows = [json.loads(line) for line in (outbox.folder / "rejected.jsonl").read_text().splitlines()]
    assert [(row["event_id"], row["topic"]) for row in rows] == [("e2", LLM_FEEDBACK), ("e5", LLM_FEEDBACK)]
    assert all("too long for this broker" in row["reason"] for row in rows)
    assert base64.b64decode(rows[0]["value"]) == outgoing(2).record.value
    assert (outbox.rejected(), outbox.status().rejected) == (2, 2)


def test_positions_outgrow_their_file_and_survive_it(tmp_path: Path):
    positions = Positions(tmp_path / "positions")
    assert positions.load() == State()
    for number in (1, 2, 3, 2_000, 2_001):
        state = State(positions={f"{each:032x}": Position(each, 49, 0) for each in range(number)}, lost=number)
        positions.save(state)
        assert positions.load() == state


def test_an_outbox_of_the_former_format_is_told_of(outbox: Outbox, caplog: pytest.LogCaptureFixture):
    outbox.folder.mkdir()
    (outbox.folder / "outbox.db").touch()
    assert outbox.left_over()
    outbox.inspect()
    assert "of a format that no release wrote" in caplog.text


def test_many_processes_write_into_one_folder(log: FaultyLog, tmp_path: Path):
    folder, writers, each = tmp_path / "outbox", 6, 40
    children = []
    for name in range(writers):
        child = os.fork()
        if child == 0:
            own = Outbox(folder, segment_bytes=3_000)
            for number in range(each):
                own.put([(number + 1, outgoing(1000 * name + number))], number + 1)
            own.close(each)
            os._exit(0)
        children.append(child)
    reader = Outbox(folder)
    sent = 0
    while children:
        sent += reader.forward(log)
        done, code = os.waitpid(children[0], os.WNOHANG)
        if done:
            assert code == 0
            children.pop(0)
    while segments_in(folder):
        sent += reader.forward(log)
    wanted = [f"e{1000 * name + number}" for name in range(writers) for number in range(each)]
    assert (sent, sorted(ids(log)), reader.status().killed) == (len(wanted), sorted(wanted), 0)


def test_segments_whose_making_was_cut_short_are_swept(outbox: Outbox):
    outbox.put(numbered(1, 1), 1)
    dead = outbox.folder / f".{'0' * 32}-00000000.segment{UNBORN}"
    dead.touch()
    making = outbox.folder / f".{'1' * 32}-00000000.segment{UNBORN}"
    with making.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        outbox.inspect()
        assert (dead.exists(), making.exists(), outbox.waiting()) == (False, True, 1)
