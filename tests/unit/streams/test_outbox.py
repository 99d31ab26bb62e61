"""A crash anywhere between the outbox and the log neither loses a record nor stores it twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from infra.errors import InputError, Unavailable
from streams.codec import encode
from streams.embedded import EmbeddedLog
from streams.events import LLM_FEEDBACK, OPS_RELEASES, Event, FeedbackGiven, ReleaseChanged
from streams.log import Record
from streams.outbox import Outbox
from streams.outbox_reading import BATCH
from streams.segments import Outgoing


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
