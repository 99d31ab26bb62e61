"""Emitting never waits and never raises; what is acknowledged is in the log or the outbox, masked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from infra.errors import Unavailable
from infra.settings import Settings
from streams.codec import decode
from streams.embedded import EmbeddedLog
from streams.emitter import Emitter
from streams.events import LLM_FEEDBACK, LLM_INTERACTIONS, FeedbackGiven, InteractionRecorded
from streams.log import MAX_RECORD_BYTES, EventLog, Record, StoredRecord
from streams.masking import Masked, Masker
from streams.opening import open_emitter, open_log


def feedback(comment: str = "good", interaction_id: str = "i") -> FeedbackGiven:
    return FeedbackGiven(interaction_id=interaction_id, comment=comment)


def stored(log: EventLog, topic: str = LLM_FEEDBACK) -> list[StoredRecord]:
    return [each for partition in log.end_offsets(topic) for each in log.read(topic, partition, 0, limit=10_000)]


class HeldMasker(Masker):
    """Stops the writer until the test lets it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.go = threading.Event()

    def mask(self, text: str) -> Masked:
        self.entered.set()
        assert self.go.wait(20)
        return super().mask(text)


class AwayLog(EmbeddedLog):
    """A log that cannot be reached while `away`."""

    away = True

    def ensure_topics(self, topics: Sequence[str]) -> None:
        if self.away:
            raise Unavailable("the log is away")
        super().ensure_topics(topics)

    def append(self, topic: str, records: Sequence[Record]) -> list[tuple[int, int]]:
        if self.away:
            raise Unavailable("the log is away")
        return super().append(topic, records)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AwayLog]:
    log = AwayLog(tmp_path / "log.db")
    log.away = False
    yield log
    log.close()


def emitter_into(log: EventLog, outbox: Path | None = None, *, masker: Masker | None = None, **more: int) -> Emitter:
    return Emitter(log, masker=masker or Masker(), outbox=outbox, source="test", **more)


def test_an_acknowledged_event_is_in_the_log_and_masked(log: AwayLog, tmp_path: Path):
    emitter = emitter_into(log)
    receipt = emitter.emit(feedback("from ada@example.org"), "event-1")
    assert receipt.wait(10)
    event = decode(stored(log)[0])
    assert (event.id, event.source, event.data) == ("event-1", "test", feedback("from [EMAIL]"))
    emitter.close()
    assert emitter.counters == {"accepted": 1, "acknowledged": 1, "failed": 0, "forwarded": 0}
    assert b"ada@" not in b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_emit_does_not_wait_for_the_writer(log: AwayLog):
    masker = HeldMasker()
    emitter = emitter_into(log, masker=masker)
    receipts = [emitter.emit(feedback()) for _ in range(50)]
    assert masker.entered.wait(10)
    assert not any(receipt.settled for receipt in receipts)
    assert not receipts[0].wait(0)
    assert not emitter.flush(0.05)
    masker.go.set()
    assert emitter.flush(10)
    assert all(receipt.wait(0) for receipt in receipts)
    assert len({decode(each).id for each in stored(log)}) == 50
    emitter.close()


def test_a_full_queue_and_a_closed_emitter_fail_the_receipt_and_are_counted(log: AwayLog):
    masker = HeldMasker()
    emitter = emitter_into(log, masker=masker, capacity=3)
    first = emitter.emit(feedback())
    assert masker.entered.wait(10)
    kept = [emitter.emit(feedback()) for _ in range(2)]
    lost = emitter.emit(feedback())
    assert not lost.wait(0)
    assert lost.reason == "the queue is full (3 events)"
    masker.go.set()
    emitter.close()
    assert all(receipt.wait(0) for receipt in (first, *kept))
    late = emitter.emit(feedback())
    assert late.reason == "the emitter is closed"
    assert emitter.counters == {"accepted": 3, "acknowledged": 3, "failed": 2, "forwarded": 0}


def test_a_payload_that_cannot_be_kept_fails_alone(log: AwayLog, caplog: pytest.LogCaptureFixture):
    emitter = emitter_into(log)
    nan = feedback().model_copy(update={"ratings": {"relevance": float("inf")}})
    long = feedback("x" * MAX_RECORD_BYTES)
    receipts = [emitter.emit(each) for each in (feedback(), nan, long, "ada@example.org", feedback())]  # type: ignore[arg-type]
    assert [receipt.wait(20) for receipt in receipts] == [True, False, False, False, True]
    assert "too long" in receipts[2].reason
    assert "ada@" not in caplog.text
    assert len(stored(log)) == 2
    emitter.close()


def test_a_log_that_is_away_fails_the_receipt_where_there_is_no_outbox(log: AwayLog):
    log.away = True
    emitter = emitter_into(log)
    receipt = emitter.emit(feedback())
    assert not receipt.wait(10)
    assert "the log is away" in receipt.reason
    emitter.close()


def test_the_outbox_keeps_events_until_the_log_is_back(log: AwayLog, tmp_path: Path):
    log.away = True
    emitter = emitter_into(log, tmp_path / "outbox")
    receipts = [emitter.emit(feedback(f"{turn} ada@example.org", f"i{turn}")) for turn in range(5)]
    assert all(receipt.wait(10) for receipt in receipts)
    assert not emitter.flush(0.3)
    assert b"ada@" not in b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    log.away = False
    assert emitter.flush(20)
    assert sorted(decode(each).data.comment[0] for each in stored(log)) == list("01234")
    emitter.close()
    assert emitter.counters["forwarded"] == 5


def test_the_next_process_forwards_what_is_left(log: AwayLog, settings: Settings, tmp_path: Path):
    log.away = True
    first = emitter_into(log, settings.home / "outbox")
    assert first.emit(feedback()).wait(10)
    first.close(timeout=0.2)
    log.away = False
    kafka = settings.model_copy(update={"log": settings.log.model_copy(update={"backend": "kafka"})})
    second = open_emitter(kafka, log)
    assert second.flush(20)
    assert len(stored(log)) == 1
    second.close()


def test_two_emitters_on_one_outbox_send_nothing_twice(log: AwayLog, tmp_path: Path):
    pair = [emitter_into(log, tmp_path / "outbox") for _ in range(2)]
    ids = [f"{side}-{turn}" for turn in range(100) for side in range(2)]
    for event_id in ids:
        pair[int(event_id[0])].emit(feedback(), event_id)
    assert all(emitter.flush(20) for emitter in pair)
    assert sorted(decode(each).id for each in stored(log)) == sorted(ids)
    for emitter in pair:
        emitter.close()


def test_order_of_one_key_is_kept_across_topics_and_batches(log: AwayLog, tmp_path: Path):
    for outbox in (None, tmp_path / "outbox"):
        emitter = emitter_into(log, outbox)
        said = InteractionRecorded(
            interaction_id="i", conversation_id="c", prompt="p", response="r", finish_reason="stop"
        )
        before = len(stored(log))
        for turn in range(600):
            emitter.emit(feedback(str(turn)))
            if turn % 100 == 0:
                emitter.emit(said)
        assert emitter.flush(30)
        assert [decode(each).data.comment for each in stored(log)[before:]] == [str(turn) for turn in range(600)]
        emitter.close()
    assert len(stored(log, LLM_INTERACTIONS)) == 12


def test_the_child_of_a_fork_writes_its_own_and_not_the_parents_events(log: AwayLog):
    masker = HeldMasker()
    emitter = emitter_into(log, masker=masker)
    emitter.emit(feedback(), "parent-0")
    assert masker.entered.wait(10)
    emitter.emit(feedback(), "parent-1")
    child = os.fork()
    if child == 0:
        masker.go = threading.Event()
        masker.go.set()
        code = 0 if emitter.emit(feedback(), "child").wait(20) and emitter.counters["accepted"] == 1 else 1
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [decode(each).id for each in stored(log)] == ["child"]
    masker.go.set()
    assert emitter.flush(10)
    assert [decode(each).id for each in stored(log)] == ["child", "parent-0", "parent-1"]
    emitter.close()


def test_what_is_queued_is_written_at_exit(settings: Settings):
    program = f"""
        from pathlib import Path
        from infra.settings import load_settings
        from streams.events import FeedbackGiven
        from streams.opening import open_emitter, open_log
        settings = load_settings(Path("none"), {{}}, {{"home": {str(settings.home)!r}}})
        emitter = open_emitter(settings, open_log(settings))
        for turn in range(200):
            emitter.emit(FeedbackGiven(interaction_id="i", comment=str(turn)))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)
    log = open_log(settings)
    assert len(stored(log)) == 200
    log.close()


def test_constructing_and_closing_touch_nothing(tmp_path: Path):
    before = threading.active_count()
    emitter = emitter_into(EmbeddedLog(tmp_path / "a" / "log.db"), tmp_path / "b")
    emitter.forward()
    emitter.close()
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == before


def test_emitting_from_many_threads_loses_nothing(log: AwayLog):
    emitter = emitter_into(log)

    def emit_some(name: int) -> None:
        for turn in range(100):
            emitter.emit(feedback(), f"{name}-{turn}")
            time.sleep(0)

    threads = [threading.Thread(target=emit_some, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert emitter.flush(20)
    assert len({decode(each).id for each in stored(log)}) == 400
    emitter.close()


def test_memory_is_bounded_by_bytes_too(log: AwayLog):
    masker = HeldMasker()
    emitter = emitter_into(log, masker=masker, capacity_bytes=10_000)
    first = emitter.emit(feedback("x" * 50_000))  # longer than the bound, and alone
    assert masker.entered.wait(10)
    refused = emitter.emit(feedback())
    assert refused.reason == "the queue is full (10000 bytes)"
    masker.go.set()
    assert first.wait(20)
    many = [emitter.emit(feedback("y" * 3_000)) for _ in range(3)]
    assert all(receipt.wait(20) for receipt in many)
    emitter.close()
    assert emitter.counters == {"accepted": 4, "acknowledged": 4, "failed": 1, "forwarded": 0}


class LockedMasker(Masker):
    """Has a lock, as RE2 has, and the writer holds it for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.entered = threading.Event()

    def mask(self, text: str) -> Masked:
        with self.lock:
            self.entered.set()
            time.sleep(0.1)
            return super().mask(text)


def test_a_fork_waits_until_the_writer_holds_no_lock_of_the_masker(log: AwayLog):
    log.away = False
    masker = LockedMasker()
    emitter = Emitter(log, masker=masker, outbox=None, source="test")
    receipt = emitter.emit(feedback())
    assert masker.entered.wait(20)
    child = os.fork()
    if not child:
        os._exit(0 if emitter.emit(feedback()).wait(10) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert receipt.wait(20)
    emitter.close()
    assert len(stored(log)) == 2


def test_the_child_of_a_fork_has_an_outbox_of_its_own_in_the_same_folder(log: AwayLog, tmp_path: Path):
    masker = HeldMasker()
    emitter = emitter_into(log, tmp_path / "outbox", masker=masker)
    masker.go.set()
    assert emitter.emit(feedback(), "parent-0").wait(10)
    masker.entered.clear()
    masker.go.clear()
    held = emitter.emit(feedback(), "parent-1")
    assert masker.entered.wait(10)
    child = os.fork()
    if child == 0:
        masker.go = threading.Event()
        masker.go.set()
        theirs = held.wait(0.05)
        ours = emitter.emit(feedback(), "child")
        code = 0 if ours.wait(20) and not theirs and emitter.counters["accepted"] == 1 else 1
        emitter.close()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    masker.go.set()
    assert emitter.flush(20)
    emitter.close()
    status = Emitter(log, masker=masker, outbox=tmp_path / "outbox", source="test").outbox_status()
    assert status is not None
    assert (status.waiting, status.killed, status.lost) == (0, 0, 0)
    assert sorted(decode(each).id for each in stored(log)) == ["child", "parent-0", "parent-1"]


def test_a_signal_handler_may_emit_while_its_thread_emits(log: AwayLog):
    emitter = emitter_into(log)
    handled: list[str] = []

    def handler(number: int, frame: object) -> None:
        handled.append(emitter.emit(feedback(), f"handler-{len(handled)}").event_id)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    emitted = 0
    while len(handled) < 20 and emitted < 5_000_000:
        emitter.emit(feedback(), f"own-{emitted}")
        emitted += 1
        while emitter.counters["accepted"] - len(stored(log)) > 5_000:
            time.sleep(0.001)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    assert emitter.flush(60)
    assert {*handled} <= {decode(each).id for each in stored(log)}
    assert emitter.counters["acknowledged"] == emitted + len(handled)
    emitter.close()


def test_the_state_of_the_outbox_is_read_from_the_emitter(log: AwayLog, tmp_path: Path):
    assert emitter_into(log).outbox_status() is None
    log.away = True
    emitter = emitter_into(log, tmp_path / "outbox")
    assert all(emitter.emit(feedback()).wait(10) for _ in range(3))
    status = emitter.outbox_status()
    assert status is not None
    assert (status.waiting, status.rejected, status.gaps) == (3, 0, ())
    assert status.size > 0
    assert not emitter.flush(0.3)
    assert "the log is away" in emitter.trouble
    log.away = False
    assert emitter.flush(20)
    assert emitter.trouble == ""
    emitter.close()
