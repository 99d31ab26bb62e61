"""Tables of the embedded log, and how a record lies in them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

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
"""
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
    for position, time, record_key, headers, value in rows:
        record = StoredRecord(
            key=record_key,
            value=value,
            headers=headers_from_json(headers),
            topic=topic,
            partition=number,
            offset=position,
            time=EPOCH + timedelta(microseconds=time),
        )
        records.append(record)
        size -= len(value)
        if size <= 0:
            break
    return records


def headers_to_json(headers: Sequence[tuple[str, bytes]]) -> str:
    """Headers as JSON text; `headers_from_json` gives them back."""
    # Latin-1 maps each byte to one character, so any bytes come back as they were.
    return json.dumps([(name, value.decode("latin-1")) for name, value in headers], ensure_ascii=False)


def headers_from_json(text: str) -> tuple[tuple[str, bytes], ...]:
    """Headers from the text that `headers_to_json` made."""
    return tuple((name, value.encode("latin-1")) for name, value in json.loads(text))
