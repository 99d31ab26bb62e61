"""Disks that are full, fail, lose power or hang: nothing is acknowledged that is not durable, and all goes on after."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

from infra.errors import Unavailable
from streams.codec import encode
from streams.embedded import EmbeddedLog
from streams.emitter import Emitter
from streams.events import LLM_FEEDBACK, Event, FeedbackGiven
from streams.masking import Masker
from streams.outbox import Outbox
from streams.outbox_issued import forget
from streams.outbox_writer import SystemFiles
from streams.segments import FIRST, Outgoing, segments_in

SECTOR = 512


def feedback(sequence: int) -> FeedbackGiven:
    return FeedbackGiven(interaction_id="i", comment=f"{sequence} " * 40)


def record(sequence: int) -> tuple[int, Outgoing]:
    event = Event(id=f"e{sequence}", data=feedback(sequence))
    return sequence, Outgoing(event.id, LLM_FEEDBACK, encode(event))


def ids(log: EmbeddedLog) -> list[str]:
    partitions = log.end_offsets(LLM_FEEDBACK)
    records = [each for partition in partitions for each in log.read(LLM_FEEDBACK, partition, 0, limit=100_000)]
    return [dict(each.headers)["ce_id"].decode() for each in records]


def delivered(folder: Path, log: EmbeddedLog) -> list[str]:
    """Ids of what the outbox in a folder holds, forwarded to the end, in the order in which the log took them."""
    log.ensure_topics([LLM_FEEDBACK])
    begin = log.end_offsets(LLM_FEEDBACK)
    outbox = Outbox(folder)
    outbox.inspect()
    while segments_in(folder):
        outbox.forward(log)
    assert outbox.status().damaged == 0
    return [
        dict(each.headers)["ce_id"].decode()
        for partition, offset in begin.items()
        for each in log.read(LLM_FEEDBACK, partition, offset, limit=100_000)
    ]


class FailingFiles(SystemFiles):
    """Fails as it is told: every call while `error` is set, and else a share of them."""

    def __init__(self, share: float = 0.0, seed: str = "") -> None:
        self.error = 0
        self.failed = 0
        self._share = share
        self._chance = random.Random(seed)
        self._open = threading.Lock()

    def _maybe_fail(self) -> None:
        with self._open:
            if self.error or self._chance.random() < self._share:
                self.failed += 1
                raise OSError(self.error or errno.EIO, os.strerror(self.error or errno.EIO))

    def create(self, path: Path) -> int:
        self._maybe_fail()
        return super().create(path)

    def write(self, file: int, data: bytes | memoryview, offset: int) -> int:
        if offset >= FIRST:
            # As a disk without room does: some of it is written before it says so. The header lies in one sector.
            super().write(file, data[: len(data) // 2], offset)
        self._maybe_fail()
        return super().write(file, data, offset)

    def sync(self, file: int) -> None:
        self._maybe_fail()
        super().sync(file)


def test_a_full_disk_holds_events_in_memory_then_refuses_and_all_goes_on_when_there_is_room(tmp_path: Path):
    files = FailingFiles()
    log = EmbeddedLog(tmp_path / "log.db", partitions=1)
    outbox = Outbox(tmp_path / "outbox", files=files)
    emitter = Emitter(log, masker=Masker(), outbox=outbox, source="chaos", capacity=20)
    assert emitter.emit(feedback(0), "e0").wait(10)
    files.error = errno.ENOSPC
    held = [emitter.emit(feedback(sequence), f"e{sequence}") for sequence in range(1, 21)]
    assert not held[0].wait(0.5)
    refused = emitter.emit(feedback(21), "e21")
    assert refused.settled
    assert "the queue is full (20 events)" in refused.reason
    assert "No space left on device" in refused.reason
    assert "No space left on device" in emitter.trouble
    assert not any(receipt.settled for receipt in held)
    assert emitter.counters["failed"] == 1
    files.error = 0
    assert all(receipt.wait(20) for receipt in held)
    assert emitter.trouble == ""
    assert emitter.flush(20)
    emitter.close()
    assert files.failed > 0
    assert sorted(ids(log)) == sorted(f"e{sequence}" for sequence in range(21))
    log.close()


def test_what_never_became_durable_fails_its_receipt_when_the_emitter_closes(tmp_path: Path):
    files = FailingFiles()
    files.error = errno.EIO
    log = EmbeddedLog(tmp_path / "log.db")
    emitter = Emitter(log, masker=Masker(), outbox=Outbox(tmp_path / "outbox", files=files), source="chaos")
    receipts = [emitter.emit(feedback(sequence)) for sequence in range(5)]
    emitter.close(timeout=0.3)
    assert [receipt.wait(10) for receipt in receipts] == [False] * 5
    assert all("Input/output error" in receipt.reason for receipt in receipts)
    assert (emitter.counters["accepted"], emitter.counters["failed"]) == (5, 5)
    log.close()


def test_writes_and_syncs_that_fail_now_and_then_lose_and_double_nothing(
    tmp_path: Path, scale: Callable[[int, int], int]
):
    files = FailingFiles(share=0.1, seed="now and then")
    log = EmbeddedLog(tmp_path / "log.db", partitions=1)
    outbox = Outbox(tmp_path / "outbox", files=files, segment_bytes=20_000)
    sequences = range(1, scale(300, 20_000) + 1)
    acknowledged = []
    for sequence in sequences:
        try:
            outbox.put([record(sequence)], sequence)
        except Unavailable:
            continue
        acknowledged.append(f"e{sequence}")
        if sequence % 50 == 0:
            outbox.forward(log)
    while outbox.waiting():
        outbox.forward(log)
    outbox.close()
    print(f"\n{files.failed} calls failed, {len(acknowledged)} of {len(sequences)} records acknowledged, none lost")
    assert files.failed > 10
    assert ids(log) == acknowledged
    assert len(acknowledged) > len(sequences) // 2
    log.close()


class PowerCut(Exception):
    """The machine went off."""


class CutFiles(SystemFiles):
    """Remembers what is on the disk for certain, and cuts the power at a call."""

    def __init__(self, calls: int, chance: random.Random) -> None:
        self.synced: dict[int, bytes] = {}
        self._calls = calls
        self._chance = chance

    def _count(self) -> None:
        self._calls -= 1
        if self._calls <= 0:
            raise PowerCut

    def write(self, file: int, data: bytes | memoryview, offset: int) -> int:
        # Within a sector, as the header is, a write is whole or not at all; that much all disks promise.
        size = len(data) if offset < FIRST else self._chance.randint(1, len(data))
        written = super().write(file, data[:size], offset)
        self._count()
        return written

    def sync(self, file: int) -> None:
        self._count()
        super().sync(file)
        self.synced[os.fstat(file).st_ino] = _content(file)
        self._count()

    def leave(self, folder: Path, target: Path) -> None:
        """What is found after the cut: what was synced, and of what was only written any sectors."""
        target.mkdir()
        for segments in segments_in(folder).values():
            for each in segments:
                now = each.path.read_bytes()
                kept = self.synced[each.path.stat().st_ino]
                sectors = range(0, max(len(now), len(kept)), SECTOR)
                parts = [self._chance.choice([now, kept])[at : at + SECTOR].ljust(SECTOR, b"\0") for at in sectors]
                (target / each.path.name).write_bytes(b"".join(parts)[: len(now)])


def _content(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size, 0)


def test_nothing_acknowledged_is_lost_when_the_power_is_cut(tmp_path: Path, scale: Callable[[int, int], int]):
    log = EmbeddedLog(tmp_path / "log.db", partitions=1)
    chance = random.Random("power")
    cuts = kept = 0
    for trial in range(scale(150, 3_000)):
        files = CutFiles(chance.randint(1, 120), chance)
        source, found = tmp_path / f"source{trial}", tmp_path / f"found{trial}"
        outbox = Outbox(source, files=files, segment_bytes=3_000)
        acknowledged: list[str] = []
        sequence = 0
        try:
            while sequence < 60:
                group = [record(sequence + each) for each in range(1, chance.randint(1, 5) + 1)]
                sequence = group[-1][0]
                outbox.put(group, sequence)
                acknowledged += [outgoing.event_id for _, outgoing in group]
        except PowerCut:
            cuts += 1
        files.leave(source, found)
        got = delivered(found, log)
        assert got[: len(acknowledged)] == acknowledged
        assert got == [f"e{each}" for each in sorted({int(name[1:]) for name in got})]
        kept += len(acknowledged)
        forget(source, outbox.writer.writer)
        outbox.abandon()
        shutil.rmtree(source)
        shutil.rmtree(found)
    print(f"\npower cut {cuts} times: {kept} acknowledged records, 0 lost")
    assert cuts > 100
    assert kept > 1_000
    log.close()


LIMITED = """
    import json, resource, signal, sys, time
    from pathlib import Path
    from infra.errors import Unavailable
    from streams.emitter import Emitter
    from streams.events import FeedbackGiven
    from streams.masking import Masker

    class Away:
        def __getattr__(self, name):
            raise Unavailable("the log is away")

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    emitter = Emitter(Away(), masker=Masker(), outbox=Path(sys.argv[1]), source="chaos", capacity=500)
    emit = lambda first, last: [emitter.emit(FeedbackGiven(interaction_id="i", comment="x" * 900), f"e{n}")
                                for n in range(first, last)]
    small = emit(0, 100)
    assert all(receipt.wait(20) for receipt in small)
    limit(100_000)                      # a file may not grow further: the outbox goes on in the next one
    more = emit(100, 400)
    assert all(receipt.wait(20) for receipt in more)
    limit(0)                            # no file may grow at all
    held = emit(400, 900)
    time.sleep(0.5)
    refused = emit(900, 950)
    during = [sum(receipt.wait(0) for receipt in held), sum(receipt.settled for receipt in refused), emitter.trouble]
    limit(resource.RLIM_INFINITY)
    after = sum(receipt.wait(20) for receipt in held)
    print(json.dumps({"during": during, "after": after, "reason": refused[0].reason}), flush=True)
    emitter.close(0.1)
"""


def test_a_file_size_limit_stops_acknowledgement_and_nothing_else(tmp_path: Path):
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), str(tmp_path / "outbox")]
    child = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert child.returncode == 0, child.stderr
    told = json.loads(child.stdout)
    acknowledged, settled, trouble = told["during"]
    assert (acknowledged, settled, told["after"]) == (0, 50, 500)
    assert "File too large" in trouble
    assert "the queue is full (500 events)" in told["reason"]
    log = EmbeddedLog(tmp_path / "log.db", partitions=1)
    assert delivered(tmp_path / "outbox", log) == [f"e{number}" for number in range(900)]
    log.close()
