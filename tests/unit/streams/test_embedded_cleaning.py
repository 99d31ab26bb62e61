"""Retention and compaction of the embedded log: what goes, what stays, and what readers see of it."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from streams.consumer import Consumer
from streams.embedded import EmbeddedLog
from streams.embedded_cleaning import STEP_RECORDS
from streams.events import CONTENT_DOCUMENTS, LLM_INTAKE, LLM_INTERACTIONS
from streams.log import Record, StoredRecord, lag
from streams.retention import SUPERSEDED_FOR, TOMBSTONE_FOR, retention

DAYS = 2.0
DOCUMENTS = CONTENT_DOCUMENTS


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EmbeddedLog]:
    with closing(EmbeddedLog(tmp_path / "log.db", partitions=1, retention_days=DAYS, session_timeout=0.6)) as log:
        yield log


@pytest.fixture
def age(tmp_path: Path) -> Callable[[timedelta], None]:
    """Makes everything in the log that much older."""

    def shift(by: timedelta) -> None:
        with closing(sqlite3.connect(tmp_path / "log.db", timeout=30)) as connection:
            change = (by // timedelta(microseconds=1),)
            connection.execute("UPDATE records SET time = time - ?", change)
            connection.execute("UPDATE newest SET tombstone = tombstone - ?", change)
            connection.commit()

    return shift


def clean(log: EmbeddedLog) -> int:
    """Clean to the end; the number of steps."""
    steps = 1
    while log.clean():
        steps += 1
    return steps


def fill(log: EmbeddedLog, topic: str, texts: str) -> None:
    """Append a record per letter: its key is the letter in lower case; a capital has no value."""
    log.append(topic, [Record(each.lower(), b"" if each.isupper() else each.encode()) for each in texts])


def left(log: EmbeddedLog, topic: str) -> dict[int, str]:
    """Offset to key, in capitals where there is no value."""
    records = log.read(topic, 0, 0, limit=100_000)
    return {each.offset: each.key if each.value else each.key.upper() for each in records}


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_each_topic_has_its_time():
    assert retention(LLM_INTERACTIONS, 30) == timedelta(days=30)
    assert retention(LLM_INTERACTIONS, 0) is None
    assert retention(LLM_INTAKE, 0) == retention(LLM_INTAKE + ".intake.retry", 0) == timedelta(hours=24)
    assert retention(LLM_INTAKE + ".dlq", 30) == timedelta(hours=24)
    assert [retention(topic, 30) for topic in (DOCUMENTS, LLM_INTERACTIONS + ".dlq")] == [None, None]


def test_old_records_go_and_reading_goes_on_at_the_first_that_is_left(log: EmbeddedLog, age):
    fill(log, "t", "abc")
    log.ensure_topics(["t.dlq"])
    fill(log, "t.dlq", "x")
    age(timedelta(days=DAYS, hours=1))
    assert clean(log) > 1
    assert log.append("t", [Record("d", b"d")]) == [(0, 3)]
    assert left(log, "t") == {3: "d"}
    assert left(log, "t.dlq") == {0: "x"}
    assert log.read("t", 0, 1)[0].offset == 3
    assert log.offsets_at("t", datetime.now(UTC) - timedelta(days=30)) == {0: 3}


def test_a_group_that_was_too_late_has_no_lag_and_reaches_the_end(log: EmbeddedLog, age):
    fill(log, LLM_INTERACTIONS, "abc")
    with log.join("g", [LLM_INTERACTIONS]) as reader:
        wait_until(lambda: len(reader.poll(max_records=1, timeout=0.1)) == 1)
        reader.commit({(LLM_INTERACTIONS, 0): 1})
        assert lag(log, "g", LLM_INTERACTIONS) == 2
        age(timedelta(days=DAYS, hours=1))
        clean(log)
        assert lag(log, "g", LLM_INTERACTIONS) == 0
        assert log.committed("new", LLM_INTERACTIONS) == {0: 3}
    targets = {LLM_INTERACTIONS: log.end_offsets(LLM_INTERACTIONS)}
    assert Consumer(log, "g", {LLM_INTERACTIONS: lambda event, record: None}).run_until(targets, 5) == 0
    fill(log, LLM_INTERACTIONS, "d")
    assert lag(log, "g", LLM_INTERACTIONS) == 1


def test_compaction_leaves_the_newest_record_of_each_key(log: EmbeddedLog, age):
    fill(log, DOCUMENTS, "abacab")
    assert clean(log) == 1
    assert len(left(log, DOCUMENTS)) == 6  # superseded a moment ago
    age(SUPERSEDED_FOR + timedelta(days=1000))
    clean(log)
    assert left(log, DOCUMENTS) == {3: "c", 4: "a", 5: "b"}
    fill(log, DOCUMENTS, "ca")
    clean(log)
    assert left(log, DOCUMENTS) == {3: "c", 4: "a", 5: "b", 6: "c", 7: "a"}
    age(SUPERSEDED_FOR)
    clean(log)
    assert left(log, DOCUMENTS) == {5: "b", 6: "c", 7: "a"}
    assert log.committed("new", DOCUMENTS) == {0: 5}


def test_a_record_without_a_value_stays_for_a_while_and_the_last_one_always(log: EmbeddedLog, age):
    fill(log, DOCUMENTS, "abAcB")
    age(SUPERSEDED_FOR)
    clean(log)
    assert left(log, DOCUMENTS) == {2: "A", 3: "c", 4: "B"}
    age(TOMBSTONE_FOR)
    clean(log)
    assert left(log, DOCUMENTS) == {3: "c", 4: "B"}
    fill(log, DOCUMENTS, "a")
    clean(log)
    assert left(log, DOCUMENTS) == {3: "c", 5: "a"}


def test_a_reader_sees_the_newest_of_each_key_whenever_the_log_is_cleaned(log: EmbeddedLog, age):
    fill(log, DOCUMENTS, "abcabcabc")
    seen: dict[str, int] = {}
    with log.join("g", [DOCUMENTS]) as reader:
        while lag(log, "g", DOCUMENTS):
            batch = reader.poll(max_records=2, timeout=0.5)
            seen |= {each.key: each.offset for each in batch}
            reader.commit({(DOCUMENTS, 0): batch[-1].offset + 1})
            age(SUPERSEDED_FOR)
            clean(log)
    assert seen == {"a": 6, "b": 7, "c": 8}


def test_steps_are_short_and_two_that_clean_at_once_end_with_the_same(log: EmbeddedLog, age, tmp_path: Path):
    keys = [f"k{number % 700}" for number in range(STEP_RECORDS * 3)]
    log.append(DOCUMENTS, [Record(key, b"x") for key in keys])
    log.append("t", [Record(key, b"x") for key in keys])
    age(timedelta(days=10))
    with closing(EmbeddedLog(tmp_path / "log.db", retention_days=DAYS)) as other, ThreadPoolExecutor(2) as pool:
        steps = list(pool.map(clean, [log, other]))
    assert sum(steps) >= 6
    newest = {key: offset for offset, key in enumerate(keys)}
    assert left(log, DOCUMENTS) == {offset: key for key, offset in sorted(newest.items(), key=lambda each: each[1])}
    assert left(log, "t") == {}


def test_the_disk_gets_the_space_back_and_the_text_is_gone_from_it(log: EmbeddedLog, age, tmp_path: Path):
    secret = b"canary-4711"
    log.append("t", [Record(f"k{number}", secret * 100) for number in range(5000)])
    fill(log, LLM_INTERACTIONS, "a")
    log.append(LLM_INTAKE, [Record("k", secret)])
    before = [each.read_bytes() for each in tmp_path.glob("log.db*")]
    assert any(secret in each for each in before)
    age(timedelta(days=DAYS, hours=1))
    clean(log)
    files = [each.read_bytes() for each in tmp_path.glob("log.db*")]
    assert sum(map(len, files)) < sum(map(len, before)) / 10
    assert len(files) == 3
    assert not any(secret in each for each in files)
    assert left(log, LLM_INTERACTIONS) == {}


@pytest.mark.parametrize("who", ["appends", "consumes"])
def test_nobody_needs_to_ask_for_it(log: EmbeddedLog, age, who: str):
    fill(log, "t", "abc")
    log.ensure_topics(["other"])
    age(timedelta(days=DAYS, hours=1))
    if who == "appends":
        wait_until(lambda: log.append("other", [Record("k", b"x")]) != [] and left(log, "t") == {})
    else:
        with log.join("g", ["other"]):
            wait_until(lambda: left(log, "t") == {})


def test_cleaning_while_others_append_and_read_disturbs_neither(log: EmbeddedLog, age):
    stop = threading.Event()
    found: list[StoredRecord] = []

    def cleaning() -> None:
        while not stop.is_set():
            age(SUPERSEDED_FOR)
            log.clean()

    with ThreadPoolExecutor(1) as pool, log.join("g", [DOCUMENTS]) as reader:
        job = pool.submit(cleaning)
        for turn in range(40):
            fill(log, DOCUMENTS, "abcde")
            found += reader.poll(max_records=100, timeout=5.0)
            reader.commit({(DOCUMENTS, 0): found[-1].offset + 1})
            assert found[-1].offset == turn * 5 + 4
        stop.set()
        job.result()
    offsets = [each.offset for each in found]
    assert offsets == sorted(set(offsets))
    clean(log)
    assert set(left(log, DOCUMENTS).values()) == set("abcde")
