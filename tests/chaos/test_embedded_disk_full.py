"""The embedded log on a disk that is full: appends and commits say so, nothing acknowledged is lost, and when there is
room again the same process goes on by itself."""

from __future__ import annotations

import multiprocessing
import resource
import sqlite3
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from infra.errors import Unavailable
from streams.embedded import EmbeddedLog
from streams.log import GroupReader, Record, StoredRecord

TOPIC = "t"
START_BYTES = 400_000
FULL = r"the event log cannot be used.*check that the disk has room"
_processes = multiprocessing.get_context("forkserver")


def allow(size: int) -> None:
    """No file of this process may grow beyond so many bytes: writing more fails, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def fill(log: EmbeddedLog, names: count[int]) -> list[str]:
    """Append three records at a time until the disk is full; the names of what was acknowledged."""
    acknowledged: list[str] = []
    while True:
        group = [f"{next(names)}" for _ in range(3)]
        try:
            log.append(TOPIC, [Record(name, name.encode() * 500) for name in group])
        except Unavailable:
            return acknowledged
        acknowledged += group


def drain(log: EmbeddedLog, reader: GroupReader) -> list[str]:
    found: list[str] = []
    while batch := reader.poll(max_records=100, timeout=0.3):
        found += [each.key for each in batch]
        reader.commit({(each.topic, each.partition): each.offset + 1 for each in batch})
    return found


def everything(log: EmbeddedLog) -> list[StoredRecord]:
    # In pages: one read gives 32 MB at most.
    found: list[StoredRecord] = []
    for number, end in log.end_offsets(TOPIC).items():
        offset = 0
        while offset < end:
            found += log.read(TOPIC, number, offset)
            offset = found[-1].offset + 1
    return found


def live(path: Path, rounds: int) -> None:
    """Fill the disk, meet it full in every way, and go on when it has more room; `rounds` times."""
    log = EmbeddedLog(path)
    names = count()
    acknowledged: list[str] = []
    handled: list[str] = []
    with log.join("g", [TOPIC]) as reader:
        for turn in range(1, rounds + 1):
            allow(turn * START_BYTES)
            acknowledged += fill(log, names)
            polled = reader.poll(max_records=1, timeout=0.3)
            assert polled, "what is there can be read on a full disk"
            next_offsets = {(TOPIC, polled[0].partition): polled[0].offset + 1}
            allow(1)
            with pytest.raises(Unavailable, match=FULL):
                log.append(TOPIC, [Record("more", b"")])
            with pytest.raises(Unavailable, match=FULL):
                reader.commit(next_offsets)
            allow(resource.RLIM_INFINITY)
            reader.commit(next_offsets)
            handled += [polled[0].key, *drain(log, reader)]
    stored = everything(log)
    assert all(each.value == each.key.encode() * 500 for each in stored)
    assert sorted(handled) == sorted(acknowledged) == sorted(each.key for each in stored)
    log.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    path.with_suffix(".count").write_text(str(len(acknowledged)))


def test_a_full_disk_is_said_and_costs_nothing_that_was_acknowledged(tmp_path: Path, scale: Callable[[int, int], int]):
    path = tmp_path / "log.db"
    rounds = scale(4, 60)
    process = _processes.Process(target=live, args=(path, rounds))
    process.start()
    process.join(240)
    assert process.exitcode == 0
    acknowledged = int(path.with_suffix(".count").read_text())
    print(f"\nthe disk was full {rounds} times; {acknowledged} records acknowledged, all there")
    assert acknowledged > 3 * rounds
