"""A kill loses only what was not acknowledged yet, and the next process says which sequence numbers those were."""

from __future__ import annotations

import logging
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from streams.embedded import EmbeddedLog
from streams.emitter import Emitter
from streams.events import LLM_FEEDBACK
from streams.masking import Masker
from streams.outbox import Outbox, OutboxStatus

EMITTING = """
    import os, signal, sys, threading
    from pathlib import Path
    from infra.errors import Unavailable
    from streams.emitter import Emitter
    from streams.events import FeedbackGiven
    from streams.masking import Masker
    from streams.outbox import Outbox
    from streams.outbox_writer import SystemFiles

    class Away:
        def __getattr__(self, name):
            raise Unavailable("the log is away")

    class HangingFiles(SystemFiles):
        # A disk that answers no more once `hangs` is set.
        hangs = False

        def sync(self, file):
            while self.hangs:
                threading.Event().wait()
            super().sync(file)

    folder, durable, hanging, end = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    files = HangingFiles()
    emitter = Emitter(Away(), masker=Masker(), outbox=Outbox(folder, files=files), source="chaos")
    receipts = [emitter.emit(FeedbackGiven(interaction_id="i"), f"{os.getpid()}-{n}") for n in range(durable)]
    assert all(receipt.wait(20) for receipt in receipts)
    files.hangs = hanging > 0
    late = [emitter.emit(FeedbackGiven(interaction_id="i")) for _ in range(hanging)]
    assert not any(receipt.wait(0.05) for receipt in late[:1])
    if end == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    emitter.close(0.2)
"""


def run(folder: Path, durable: int, hanging: int, end: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(EMITTING), str(folder), str(durable), str(hanging), end]
    child = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert child.returncode == (-signal.SIGKILL if end == "killed" else 0), child.stderr


def restarted(folder: Path, home: Path) -> tuple[OutboxStatus, int]:
    """What the next process says, and how many records it brings to the log."""
    log = EmbeddedLog(home / "log.db", partitions=1)
    log.ensure_topics([LLM_FEEDBACK])
    before = log.end_offsets(LLM_FEEDBACK)[0]
    emitter = Emitter(log, masker=Masker(), outbox=folder, source="next")
    emitter.forward()
    assert emitter.flush(30)
    deadline = time.monotonic() + 20
    while Outbox(folder).left_over() and time.monotonic() < deadline:
        time.sleep(0.02)
    status = emitter.outbox_status()
    assert status is not None
    emitter.close()
    return status, log.end_offsets(LLM_FEEDBACK)[0] - before


def test_the_numbers_that_were_issued_and_not_durable_are_told_after_each_kill(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, scale: Callable[[int, int], int]
):
    chance = random.Random("gap")
    lost = 0
    for kill in range(scale(4, 40)):
        durable, hanging = chance.randint(1, 300), chance.randint(1, 300)
        run(tmp_path / "outbox", durable, hanging, "killed")
        with caplog.at_level(logging.WARNING):
            status, stored = restarted(tmp_path / "outbox", tmp_path)
        lost += hanging
        # The group in the hand of the kill may lie in the file, unacknowledged: then it is stored, and not lost.
        saved = stored - durable
        lost -= saved
        assert 0 <= saved <= hanging
        assert (status.killed, status.lost, status.waiting) == (kill + 1, lost, 0)
        if saved < hanging:
            assert (status.gaps[-1].after, status.gaps[-1].lost) == (durable + saved, hanging - saved)
            assert f"its events {durable + saved + 1} to {durable + hanging} are lost" in caplog.text
    print(f"\n{kill + 1} kills with the disk hanging: {lost} unacknowledged events lost, all of them told")
    assert lost > 0


def test_a_process_killed_before_its_first_group_is_told_of(tmp_path: Path):
    run(tmp_path / "outbox", 0, 7, "killed")
    status, stored = restarted(tmp_path / "outbox", tmp_path)
    assert (status.killed, status.lost + stored) == (1, 7)


def test_a_process_that_ends_in_order_leaves_no_gap(tmp_path: Path):
    run(tmp_path / "outbox", 25, 0, "closed")
    status, stored = restarted(tmp_path / "outbox", tmp_path)
    assert (status.killed, status.lost, status.gaps, stored) == (0, 0, (), 25)


def test_nothing_is_told_of_a_process_that_lives(tmp_path: Path):
    outbox = Outbox(tmp_path / "outbox")
    outbox.writer.issued.numbers[0] = 5
    other = Outbox(tmp_path / "outbox")
    assert not other.left_over()
    other.inspect()
    assert other.status().killed == 0
    outbox.close()
