"""A window of a topic is read again as it was, and no group notices."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.errors import InputError, NotFound
from streams import replay
from streams.codec import encode
from streams.embedded import EmbeddedLog
from streams.events import LLM_FEEDBACK, Event, FeedbackGiven
from streams.log import Record
from streams.replay import Window, reread

LONG_AGO, FAR_OFF = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EmbeddedLog]:
    log = EmbeddedLog(tmp_path / "log.db", partitions=3)
    yield log
    log.close()


def send(log: EmbeddedLog, *names: str) -> None:
    log.append(LLM_FEEDBACK, [encode(Event(data=FeedbackGiven(interaction_id=name, comment="x"))) for name in names])


def names(log: EmbeddedLog, start: datetime, end: datetime) -> list[str]:
    found = [one.event for one in reread(log, Window(topic=LLM_FEEDBACK, start=start, end=end))]
    return sorted(event.data.interaction_id for event in found if event is not None)


def moment() -> datetime:
    time.sleep(0.002)
    return datetime.now(UTC)


def test_the_records_between_two_moments_are_read(log):
    send(log, "a", "b")
    first = moment()
    send(log, "c", "d", "e")
    second = moment()
    send(log, "f")
    assert names(log, first, second) == ["c", "d", "e"]
    assert names(log, LONG_AGO, first) == ["a", "b"]
    assert names(log, second, FAR_OFF) == ["f"]
    assert names(log, LONG_AGO, FAR_OFF) == list("abcdef")
    assert names(log, LONG_AGO, LONG_AGO + timedelta(days=1)) == []


def test_long_windows_are_read_in_parts_and_progress_reaches_the_total(log, monkeypatch):
    monkeypatch.setattr(replay, "BATCH", 7)
    send(log, *(f"i{number}" for number in range(50)))
    log.append(LLM_FEEDBACK, [Record(key="k", value=b"no event")])
    found = list(reread(log, Window(topic=LLM_FEEDBACK, start=LONG_AGO, end=FAR_OFF)))
    assert len(found) == 51
    assert [one.done for one in found] == list(range(1, 52))
    assert {one.total for one in found} == {51}
    assert [one.event for one in found].count(None) == 1


def test_reading_again_moves_no_group(log):
    send(log, "a", "b", "c")
    with log.join("g", [LLM_FEEDBACK]) as reader:
        first = reader.poll(max_records=1)[0]
        reader.commit({(first.topic, first.partition): first.offset + 1})
        before = log.committed("g", LLM_FEEDBACK)
        assert names(log, LONG_AGO, FAR_OFF) == ["a", "b", "c"]
        assert log.committed("g", LLM_FEEDBACK) == before
        assert len(reader.poll()) == 2


def test_an_unknown_topic_and_times_without_their_offset_are_errors(log):
    with pytest.raises(NotFound, match="no such topic"):
        list(reread(log, Window(topic="nothing", start=LONG_AGO, end=FAR_OFF)))
    with pytest.raises(InputError, match="the window is empty"):
        Window(topic=LLM_FEEDBACK, start=FAR_OFF, end=LONG_AGO)
    with pytest.raises(ValueError, match="timezone"):
        Window(topic=LLM_FEEDBACK, start=datetime(2025, 1, 1), end=FAR_OFF)  # noqa: DTZ001
