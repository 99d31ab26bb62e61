"""How far groups are, per partition, and how long the oldest has waited."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.codec import encode
from streams.consumer import Consumer
from streams.embedded import EmbeddedLog
from streams.events import LLM_FEEDBACK, LLM_INTERACTIONS, Event, FeedbackGiven
from streams.log import StoredRecord, retry_topic
from streams.progress import dead_letters_written, progress


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EmbeddedLog]:
    log = EmbeddedLog(tmp_path / "log.db", partitions=2)
    yield log
    log.close()


def send(log: EmbeddedLog, number: int) -> None:
    log.append(
        LLM_FEEDBACK, [encode(Event(id=f"e{n}", data=FeedbackGiven(interaction_id=f"i{n}"))) for n in range(number)]
    )


def test_progress_is_counted_by_partition_with_the_age_of_the_oldest(log: EmbeddedLog):
    send(log, 40)
    before = time.time()
    time.sleep(0.05)
    found = progress(log, {"g": [LLM_FEEDBACK, LLM_INTERACTIONS]})
    assert [(each.group, each.topic, each.partition) for each in found] == [
        ("g", LLM_FEEDBACK, 0),
        ("g", LLM_FEEDBACK, 1),
    ]
    assert sum(each.behind for each in found) == 40
    assert {each.partition: each.behind for each in found} == log.end_offsets(LLM_FEEDBACK)
    assert all(each.oldest_seconds and 0.05 <= each.oldest_seconds <= time.time() - before + 5 for each in found)
    Consumer(log, "g", {LLM_FEEDBACK: lambda event, record: None}).run_until(
        {LLM_FEEDBACK: log.end_offsets(LLM_FEEDBACK)}, 20
    )
    assert [(each.behind, each.oldest_seconds) for each in progress(log, {"g": [LLM_FEEDBACK]})] == [(0, None)] * 2
    assert sum(each.behind for each in progress(log, {"other": [LLM_FEEDBACK]})) == 40


def test_what_waits_for_a_retry_and_what_is_dead_are_told(log: EmbeddedLog):
    send(log, 10)

    def handle(event: Event, record: StoredRecord) -> None:
        if event.id == "e3":
            raise ValueError("fails")

    for delays in ((), (60.0,)):
        consumer = Consumer(log, f"g{len(delays)}", {LLM_FEEDBACK: handle}, backoff=0.001, delays=delays)
        consumer.run_until({LLM_FEEDBACK: log.end_offsets(LLM_FEEDBACK)}, 20)
    assert dead_letters_written(log, [LLM_FEEDBACK, LLM_INTERACTIONS]) == {LLM_FEEDBACK: 1, LLM_INTERACTIONS: 0}
    found = {(each.topic, each.behind) for each in progress(log, {"g1": [LLM_FEEDBACK]}) if each.behind}
    assert found == {(retry_topic(LLM_FEEDBACK, "g1"), 1)}
