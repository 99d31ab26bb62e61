"""Tables of the embedded log, and how a record lies in them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from streams.log import StoredRecord

SCHEMA = """
CREATE TABLE IF NOT EXISTS partitions (
    id INTEGER PRIMARY KEY, topic TEXT NOT NULL, number INTEGER NOT NULL,
    next_offset INTEGER NOT NULL DEFAULT 0, last_time INTEGER NOT NULL DEFAULT 0, UNIQUE (topic, number));
CREATE TABLE IF NOT EXISTS records (
    partition INTEGER NOT NULL REFERENCES partitions, "offset" INTEGER NOT NULL, time INTEGER NOT NULL,
    key TEXT NOT NULL, headers TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (partition, "offset"));
CREATE INDEX IF NOT EXISTS records_by_time ON records (partition, time);
CREATE TABLE IF NOT EXISTS members (
    id TEXT PRIMARY KEY, consumer_group TEXT NOT NULL, topics TEXT NOT NULL, heartbeat REAL NOT NULL);
CREATE TABLE IF NOT EXISTS positions (
    consumer_group TEXT NOT NULL, partition INTEGER NOT NULL REFERENCES partitions,
    next_offset INTEGER NOT NULL DEFAULT 0, member TEXT, generation INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (consumer_group, partition));
CREATE TABLE IF NOT EXISTS compacted (
    partition INTEGER PRIMARY KEY REFERENCES partitions, next_offset INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS newest (
    partition INTEGER NOT NULL REFERENCES partitions, key TEXT NOT NULL, "offset" INTEGER NOT NULL, tombstone INTEGER,
    PRIMARY KEY (partition, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tombstones ON newest (partition, tombstone) WHERE tombstone IS NOT NULL;
"""
# `compacted` says how far compaction has come, `newest` where the last record of each key before that lies.
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""Times are kept as microseconds since then."""


def fetch(
    connection: sqlite3.Connection, key: int, topic: str, number: int, offset: int, *, limit: int, size: int = 32 << 20
) -> list[StoredRecord]:
    """Up to `limit` records of a partition from an offset on, and no further one after `size` bytes."""
    rows = connection.execute(
        'SELECT "offset", time, key, headers, value FROM records'
        ' WHERE partition = ? AND "offset" >= ? ORDER BY "offset" LIMIT ?',
        (key, offset, limit),
    )
    records: list[StoredRecord] = []
    taken, moment = -1, EPOCH
    for position, time, record_key, headers, value in rows:
        if time != taken:  # records that were appended together share it
            taken, moment = time, EPOCH + timedelta(microseconds=time)
        records.append(StoredRecord(record_key, value, unpack_headers(headers), topic, number, position, moment))
        size -= len(value)
        if size <= 0:
            break
    return records


def pack_headers(headers: Sequence[tuple[str, bytes]]) -> bytes | str:
    """Headers as one value of the file: the names and then the values with NUL between, or JSON where one has a NUL."""
    packed = b"\0".join([*_encoded(tuple([name for name, _ in headers])), *[value for _, value in headers]])
    if packed.count(b"\0") == max(0, 2 * len(headers) - 1):
        return packed
    # Latin-1 maps each byte to one character, so any bytes come back as they were.
    return json.dumps([(name, value.decode("latin-1")) for name, value in headers], ensure_ascii=False)


def unpack_headers(packed: bytes | str) -> tuple[tuple[str, bytes], ...]:
    """Headers from what `pack_headers` made; older files have JSON only."""
    if isinstance(packed, str):
        return tuple([(name, value.encode("latin-1")) for name, value in json.loads(packed)])
    parts = packed.split(b"\0")
    half = len(parts) // 2
    return tuple(zip(_decoded(tuple(parts[:half])), parts[half:], strict=False))


# The names are nearly always those of CloudEvents.
@lru_cache(maxsize=64)
def _encoded(names: tuple[str, ...]) -> tuple[bytes, ...]:
    return tuple(name.encode() for name in names)


@lru_cache(maxsize=64)
def _decoded(names: tuple[bytes, ...]) -> tuple[str, ...]:
    return tuple(name.decode() for name in names)
