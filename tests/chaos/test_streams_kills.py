"""Processes killed at random moments: every event they saw acknowledged is in the log, and none of them twice."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from streams.codec import decode
from streams.consumer import Consumer
from streams.embedded import EmbeddedLog
from streams.emitter import Emitter
from streams.events import LLM_FEEDBACK, Event
from streams.log import EventLog, StoredRecord, lag
from streams.masking import Masker

KILLS = 10
EMITTING = """
    import sys, threading, time
    from pathlib import Path
    from infra.errors import Unavailable
    from streams.embedded import EmbeddedLog
    from streams.emitter import Emitter
    from streams.events import FeedbackGiven
    from streams.masking import Masker

    home, name, mode = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

    class AwayLog(EmbeddedLog):
        # There and away in turns, as a broker behind a bad line.
        def append(self, topic, records):
            if mode == "away" or (mode == "flaky" and time.time() % 0.1 < 0.05):
                raise Unavailable("the log is away")
            return super().append(topic, records)

    emitter = Emitter(
        AwayLog(home / "log.db"), masker=Masker(), outbox=None if mode == "direct" else home / "outbox", source="chaos"
    )
    print("ready", flush=True)
    number = 0
    while True:
        names = [f"{name}-{number + each}" for each in range(5)]
        receipts = [emitter.emit(FeedbackGiven(interaction_id=name), each) for each in names]
        number += 5
        for receipt in receipts:
            if receipt.wait(10):
                sys.stdout.write(f"{receipt.event_id}\\n")
                sys.stdout.flush()
"""
HANDLING = """
    import sys, threading
    from pathlib import Path
    from streams.consumer import Consumer
    from streams.embedded import EmbeddedLog
    from streams.events import LLM_FEEDBACK

    home = Path(sys.argv[1])
    effects = (home / "effects.txt").open("a")

    def handle(event, record):
        effects.write(event.id + "\\n")
        effects.flush()

    print("ready", flush=True)
    Consumer(EmbeddedLog(home / "log.db", session_timeout=0.5), "g", {LLM_FEEDBACK: handle}).run(threading.Event())
"""


def run_and_kill(program: str, seconds: float, *arguments: str) -> list[str]:
    """Run a program, kill it `seconds` after it is ready, and return the whole lines it had printed."""
    command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(seconds)
    child.kill()
    printed = child.communicate(timeout=20)[0]
    return printed[: printed.rfind("\n") + 1].splitlines()


def stored_ids(log: EventLog) -> list[str]:
    records: list[StoredRecord] = []
    for partition, end in log.end_offsets(LLM_FEEDBACK).items():
        records += log.read(LLM_FEEDBACK, partition, 0, limit=end + 1)
    return [decode(record).id for record in records]


@pytest.mark.parametrize("mode", ["direct", "flaky", "away"])
def test_nothing_acknowledged_is_lost_or_doubled_when_the_emitting_process_is_killed(mode: str, tmp_path: Path):
    moments = random.Random(f"emit {mode}")
    acknowledged: list[str] = []
    for kill in range(KILLS):
        acknowledged += run_and_kill(EMITTING, moments.uniform(0.02, 0.4), str(tmp_path), f"k{kill}", mode)
    log = EmbeddedLog(tmp_path / "log.db")
    if mode != "direct":
        survivor = Emitter(log, masker=Masker(), outbox=tmp_path / "outbox", source="chaos")
        survivor.forward()
        assert survivor.flush(60)
        survivor.close()
    stored = stored_ids(log)
    assert len(acknowledged) > KILLS
    assert set(acknowledged) - set(stored) == set()
    assert len(stored) == len(set(stored))
    log.close()


def test_every_record_is_handled_when_the_consuming_process_is_killed(tmp_path: Path):
    moments = random.Random("consume")
    run_and_kill(EMITTING, 1.0, str(tmp_path), "k", "direct")
    log = EmbeddedLog(tmp_path / "log.db", session_timeout=0.5)
    for _ in range(KILLS):
        run_and_kill(HANDLING, moments.uniform(0.0, 0.1), str(tmp_path))
    rest: list[str] = []

    def handle(event: Event, record: StoredRecord) -> None:
        rest.append(event.id)

    Consumer(log, "g", {LLM_FEEDBACK: handle}).run_until({LLM_FEEDBACK: log.end_offsets(LLM_FEEDBACK)}, 30)
    effects = (tmp_path / "effects.txt").read_text().splitlines()
    assert set(effects) | set(rest) == set(stored_ids(log))
    assert lag(log, "g", LLM_FEEDBACK) == 0
    log.close()
