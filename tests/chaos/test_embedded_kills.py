"""Processes that use the embedded log and are killed at named points and at random moments, while others go on: what
was acknowledged stays, whole, once and at its place, and the file is sound."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from datetime import timedelta
from functools import partial
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from kill_points import Point, arm, both

from streams import embedded_cleaning
from streams.embedded import EmbeddedLog
from streams.events import CONTENT_DOCUMENTS
from streams.log import GroupReader, LostPartition, Record

BATCH = 20
EXPIRING = "expiring"
FOR_EVER = "kept"
POINTS = (
    Point("inside the append's transaction", "", "streams.embedded:EmbeddedLog._append", "after"),
    *both("appends are written", "", "streams.embedded:EmbeddedLog._write"),
    Point("a transaction is begun", "", "streams.sqlite:_begin", "after"),
    Point("inside the commit's transaction", "", "streams.embedded_group:EmbeddedReader._move", "after"),
    *both("offsets are committed", "", "streams.embedded_group:EmbeddedReader.commit"),
    Point("inside the rebalance", "", "streams.embedded_group:EmbeddedReader._register", "after", rare=True),
    *both("a step of cleaning", "", "streams.embedded_cleaning:_carry_out"),
    Point("inside a compaction", "", "streams.embedded_cleaning:_carry_out_compaction", "after"),
    *both("the write-ahead log is emptied", "", "streams.sqlite:SqliteFile.checkpoint", rare=True),
)
_processes = multiprocessing.get_context("forkserver")


def live(folder: Path, run: int, point: Point | None, call: int) -> None:
    """Append, poll, commit and clean until the process is killed, and write down what was done."""
    # Compaction and retention without their patience.
    for name, value in {"SUPERSEDED_FOR": timedelta(0), "STEP_PAGES": 5}.items():
        setattr(embedded_cleaning, name, value)
    kept_for = embedded_cleaning.retention
    embedded_cleaning.retention = lambda topic, days: (
        timedelta(seconds=0.05) if topic == EXPIRING else kept_for(topic, days)
    )
    log = EmbeddedLog(folder / "log.db", session_timeout=0.5)
    reader = log.join("g", [FOR_EVER])
    ledger = os.open(folder / "ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    if point:
        arm(point, call, folder / "deaths")
    (folder / f"ready-{run}").touch()
    for turn in count():
        live_a_turn(log, reader, partial(note, ledger), f"r{run:03}", turn)
        time.sleep(0.02)  # more records would only make the checks longer


def live_a_turn(log: EmbeddedLog, reader: GroupReader, note: Callable[..., None], run: str, turn: int) -> None:
    names = [f"{run}/{turn}/{each}" for each in range(BATCH)]
    for topic in (FOR_EVER, EXPIRING, CONTENT_DOCUMENTS):
        records = [Record(f"{run}-{each % 7}", f"{name} ".encode() * 40) for each, name in enumerate(names)]
        places = log.append(topic, records)
        note(topic, [(record.key, name, *place) for record, name, place in zip(records, names, places, strict=True)])
    batch = reader.poll(max_records=50, timeout=0)
    moved = {(each.topic, each.partition): each.offset + 1 for each in batch}
    note("handled", [(each.partition, each.offset) for each in batch])
    with suppress(LostPartition):
        reader.commit(moved)
        note("committed", [(partition, offset) for (_, partition), offset in moved.items()])
    log.clean()


def note(ledger: int, what: str, rows: Sequence[tuple[object, ...]]) -> None:
    os.write(ledger, "".join(json.dumps([what, *row]) + "\n" for row in rows).encode())


def start(folder: Path, run: int, point: Point | None, call: int) -> BaseProcess:
    """A process that lives until its point, or until it is killed."""
    process = _processes.Process(target=live, args=(folder, run, point, call), daemon=True)
    process.start()
    while not (folder / f"ready-{run}").exists():
        assert process.is_alive()
        time.sleep(0.01)
    return process


def ledger(folder: Path) -> Iterator[list[Any]]:
    """What the processes saw done; the last line of one that was killed may be torn."""
    for line in (folder / "ledger").read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def stored(log: EmbeddedLog, topic: str) -> dict[tuple[int, int], tuple[str, str]]:
    """Place to key and name of every record, whose value is whole."""
    found: dict[tuple[int, int], tuple[str, str]] = {}
    for partition, end in log.end_offsets(topic).items():
        for each in log.read(topic, partition, 0, limit=end + 1):
            name = each.value.decode().split(" ", 1)[0]
            assert each.value == f"{name} ".encode() * 40
            found[partition, each.offset] = (each.key, name)
    return found


def serial(name: str) -> tuple[int, int]:
    _, turn, each = name.split("/")
    return int(turn), int(each)


@pytest.mark.timeout(1800)
def test_what_was_acknowledged_stays_whoever_is_killed_where(tmp_path: Path, scale: Callable[[int, int], int]):
    chance = random.Random("embedded kills")
    kills: Counter[str] = Counter()
    turns: list[Point | None] = [*POINTS, *[None] * 4] * scale(1, 15)
    chance.shuffle(turns)
    other = start(tmp_path, 0, None, 0)
    for run, point in enumerate(turns, start=1):
        process = start(tmp_path, run, point, 1 if point and point.rare else chance.randint(1, 12))
        if point is None:
            time.sleep(chance.uniform(0.05, 0.5))
            process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        kills[point.name if point else "at a random moment"] += 1
        check(tmp_path, sound_only=True)
    assert other.is_alive()
    other.kill()
    other.join()
    report = check(tmp_path)
    names = "".join(f"\n  {number:4} {name}" for name, number in sorted(kills.items()))
    print(f"\n{kills.total()} kills:{names}\n{report}")
    noted = Counter((tmp_path / "deaths").read_text().splitlines())
    assert noted == {name: number for name, number in kills.items() if name != "at a random moment"}
    assert set(noted) == {point.name for point in POINTS}


def check(folder: Path, *, sound_only: bool = False) -> str:
    """Everything that must hold; the counts. While others write, only that the file is sound."""
    with closing(sqlite3.connect(folder / "log.db", timeout=30)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    if sound_only:
        return ""
    done = list(ledger(folder))
    with closing(EmbeddedLog(folder / "log.db")) as log:
        kept = acknowledged_stays(done, stored(log, FOR_EVER))
        newest_stays(done, stored(log, CONTENT_DOCUMENTS))
        gone = never_used_again(done)
        committed = log.committed("g", FOR_EVER)
        first = {partition: log.read(FOR_EVER, partition, offset) for partition, offset in committed.items()}
        handled = {(each[1], each[2]) for each in done if each[0] == "handled"}
        for partition, end in committed.items():
            assert end >= max([each[2] for each in done if each[:2] == ["committed", partition]], default=0)
            assert {(partition, offset) for offset in range(end)} <= handled
            assert not first[partition] or first[partition][0].offset == end
        assert sum(committed.values()) > 0
        left = len(stored(log, CONTENT_DOCUMENTS)) + len(stored(log, EXPIRING))
    return f"{kept} records acknowledged on {FOR_EVER!r}, 0 lost; {gone} elsewhere, of which {left} are left"


def acknowledged_stays(done: list[list[Any]], found: dict[tuple[int, int], tuple[str, str]]) -> int:
    """What was acknowledged is where it was said to be, and a batch is there whole or not at all."""
    acknowledged = {(place[0], place[1]): (key, name) for what, key, name, *place in done_on(done, FOR_EVER)}
    assert {place: found.get(place) for place in acknowledged} == acknowledged
    names = [name for _, name in found.values()]
    assert len(set(names)) == len(names)
    batches = Counter(name.rsplit("/", 1)[0] for name in names)
    assert set(batches.values()) == {BATCH}
    return len(acknowledged)


def newest_stays(done: list[list[Any]], found: dict[tuple[int, int], tuple[str, str]]) -> None:
    """Of each key there is the last record that was acknowledged, or a later one."""
    last: dict[str, tuple[int, int]] = {}
    for key, name in found.values():
        last[key] = max(last.get(key, (0, 0)), serial(name))
    acknowledged: dict[str, tuple[int, int]] = {}
    for _, key, name, *_ in done_on(done, CONTENT_DOCUMENTS):
        acknowledged[key] = max(acknowledged.get(key, (0, 0)), serial(name))
    assert acknowledged
    assert {key for key, each in acknowledged.items() if last.get(key, (-1, -1)) < each} == set()


def never_used_again(done: list[list[Any]]) -> int:
    """No place was given twice; the number of places on topics from which records go."""
    number = 0
    for topic in (EXPIRING, CONTENT_DOCUMENTS):
        places = [(each[3], each[4]) for each in done_on(done, topic)]
        assert len(set(places)) == len(places)
        number += len(places)
    return number


def done_on(done: list[list[Any]], topic: str) -> list[list[Any]]:
    return [each for each in done if each[0] == topic]
