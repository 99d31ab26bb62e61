"""The embedded log's file: what lies in it, older files, and threads that append at the same time."""

from __future__ import annotations

import json
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import Unavailable
from streams.embedded import EmbeddedLog
from streams.embedded_records import pack_headers, unpack_headers
from streams.log import Record, StoredRecord, lag
from streams.sqlite import SqliteFile

HEADERS = st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.binary()), max_size=9).map(tuple)
FIRST_SCHEMA = """
CREATE TABLE partitions (
    id INTEGER PRIMARY KEY, topic TEXT NOT NULL, number INTEGER NOT NULL,
    next_offset INTEGER NOT NULL DEFAULT 0, last_time INTEGER NOT NULL DEFAULT 0, UNIQUE (topic, number));
CREATE TABLE records (
    partition INTEGER NOT NULL REFERENCES partitions, "offset" INTEGER NOT NULL, time INTEGER NOT NULL,
    key TEXT NOT NULL, headers TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (partition, "offset"));
CREATE INDEX records_by_time ON records (partition, time);
CREATE TABLE members (
    id TEXT PRIMARY KEY, consumer_group TEXT NOT NULL, topics TEXT NOT NULL, heartbeat REAL NOT NULL);
CREATE TABLE positions (
    consumer_group TEXT NOT NULL, partition INTEGER NOT NULL REFERENCES partitions,
    next_offset INTEGER NOT NULL DEFAULT 0, member TEXT, generation INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (consumer_group, partition));
"""


def everything(log: EmbeddedLog, topic: str) -> list[StoredRecord]:
    return [each for number in log.end_offsets(topic) for each in log.read(topic, number, 0, limit=100_000)]


@given(HEADERS)
def test_headers_come_back_whatever_bytes_they_are(headers: tuple[tuple[str, bytes], ...]):
    assert unpack_headers(pack_headers(headers)) == headers


def test_a_file_of_the_first_format_is_read_and_goes_on(tmp_path: Path):
    path = tmp_path / "log.db"
    headers = (("ce_id", b"1"), ("raw", b"\x00\xff"))
    text = json.dumps([(name, value.decode("latin-1")) for name, value in headers], ensure_ascii=False)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"PRAGMA journal_mode=WAL; {FIRST_SCHEMA}")
        connection.execute("INSERT INTO partitions VALUES (1, 't', 0, 1, 5)")
        connection.execute("INSERT INTO records VALUES (1, 0, 5, 'k', ?, ?)", (text, b"old"))
        connection.execute("INSERT INTO positions VALUES ('g', 1, 1, NULL, 3)")
        connection.commit()
    log = EmbeddedLog(path)
    assert log.append("t", [Record("k", b"new", headers)]) == [(0, 1)]
    assert [(each.value, each.headers) for each in everything(log, "t")] == [(b"old", headers), (b"new", headers)]
    assert lag(log, "g", "t") == 1
    log.close()


def test_threads_that_append_at_once_lose_nothing_and_share_transactions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    log = EmbeddedLog(tmp_path / "log.db")
    log.ensure_topics(["t"])
    transactions: list[int] = []
    writing = SqliteFile.writing

    def counted(file: SqliteFile, *, durable: bool = True) -> AbstractContextManager[sqlite3.Connection]:
        transactions.append(threading.get_ident())
        return writing(file, durable=durable)

    monkeypatch.setattr(SqliteFile, "writing", counted)
    threads, turns = 8, 25
    together = threading.Barrier(threads)

    def append(thread: int) -> list[tuple[int, int]]:
        together.wait()
        return [log.append("t", [Record(f"{thread}", f"{thread}/{turn}".encode())])[0] for turn in range(turns)]

    with ThreadPoolExecutor(threads) as pool:
        places = [place for each in pool.map(append, range(threads)) for place in each]
    stored = everything(log, "t")
    assert len(set(places)) == len(stored) == threads * turns
    for thread in range(threads):
        assert [each.value for each in stored if each.key == f"{thread}"] == [
            f"{thread}/{turn}".encode() for turn in range(turns)
        ]
    assert 0 < len(transactions) < threads * turns
    log.close()


def test_an_append_that_fails_fails_for_each_thread_that_shared_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "log.db"
    log = EmbeddedLog(path)
    log.ensure_topics(["t"])
    monkeypatch.setattr("streams.sqlite.BUSY_SECONDS", 0.3)
    with closing(sqlite3.connect(path, isolation_level=None)) as other, ThreadPoolExecutor(4) as pool:
        other.execute("BEGIN IMMEDIATE")
        calls = [pool.submit(log.append, "t", [Record("k", b"x")]) for _ in range(4)]
        for call in calls:
            with pytest.raises(Unavailable, match="locked"):
                call.result(timeout=30)
        other.execute("ROLLBACK")
    assert log.end_offsets("t") == {0: 0, 1: 0, 2: 0}
    log.append("t", [Record("k", b"x")])
    log.close()
