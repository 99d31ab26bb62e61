"""`/metrics`: read back by Prometheus' own parser, from a running installation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from infra.errors import Unavailable
from serving.app import Rooms, app_of
from serving.metrics_api import Figures, router
from streams.codec import encode
from streams.embedded import EmbeddedLog
from streams.events import LLM_FEEDBACK, LLM_INTAKE, LLM_INTERACTIONS, Event, FeedbackGiven
from streams.log import Record
from streams.progress import Progress


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Name and label values of each sample to its value."""
    order = ("group", "topic", "partition", "outcome", "state")
    return {
        (sample.name, *(sample.labels[name] for name in order if name in sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Fixed:
    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def figures(self) -> Figures:
        return self._figures


def scrape(figures: Figures) -> dict[tuple[str, ...], float]:
    app = FastAPI()
    app.include_router(router(Fixed(figures)))
    answer = TestClient(app).get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return samples(answer.text)


FULL = Figures(
    emitter={"accepted": 10, "acknowledged": 8, "failed": 1, "forwarded": 7},
    outbox={"waiting": 1, "rejected": 2, "killed": 3, "lost": 4, "torn": 5, "damaged": 6, "size": 999},
    consumers={"monitor": {"handled": 5, "put_off": 2, "retried": 1, "dead": 1, "waiting": 3}},
    progress=[
        Progress(group="monitor", topic="t", partition=0, behind=4, oldest_seconds=1.5),
        Progress(group="monitor", topic="t", partition=1, behind=0, oldest_seconds=None),
    ],
    dead_letters={"t": 9},
)


def test_every_figure_is_there_under_its_name():
    found = scrape(FULL)
    assert found["quill_emitter_events_total", "failed"] == 1
    assert found["quill_emitter_events_total", "forwarded"] == 7
    assert {key[1]: value for key, value in found.items() if key[0] == "quill_outbox_events"} == {
        "waiting": 1,
        "rejected": 2,
        "killed": 3,
        "lost": 4,
        "torn": 5,
        "damaged": 6,
    }
    assert found["quill_consumer_records_total", "monitor", "put_off"] == 2
    assert found["quill_consumer_waiting", "monitor"] == 3
    assert found["quill_consumer_lag_events", "monitor", "t", "0"] == 4
    assert found["quill_consumer_oldest_unhandled_seconds", "monitor", "t", "0"] == 1.5
    assert found["quill_consumer_oldest_unhandled_seconds", "monitor", "t", "1"] == 0
    assert found["quill_dead_letter_records_total", "t"] == 9
    assert found["quill_log_up",] == 1


def test_the_documented_names_are_those_that_are_served():
    text = (Path(__file__).parents[3] / "docs" / "consumers.md").read_text()
    documented = set(re.findall(r"quill_[a-z_]+", text))
    assert len(documented) == 8
    assert {name for name, *_ in scrape(FULL)} == documented


def test_a_process_that_did_nothing_yet_has_metrics():
    assert scrape(Figures(log_up=False)) == {("quill_log_up",): 0}


def test_an_installation_tells_its_lag_and_its_dead_letters(settings):
    rooms = Rooms(settings, intake=True)
    rooms.log.ensure_topics([LLM_INTAKE])  # as the intake's own thread would
    rooms.log.append(LLM_FEEDBACK, [encode(Event(data=FeedbackGiven(interaction_id=f"i{n}"))) for n in range(7)])
    rooms.log.append(f"{LLM_INTERACTIONS}.dlq", [Record("k", b"no event")])
    assert rooms.emitter.emit(FeedbackGiven(interaction_id="i")).wait(20)
    found = samples(TestClient(app_of(rooms)).get("/metrics").text)  # no lifespan: nothing else is opened
    assert found["quill_emitter_events_total", "acknowledged"] == 1
    lag = {key[1:]: value for key, value in found.items() if key[0] == "quill_consumer_lag_events"}
    assert sum(value for key, value in lag.items() if key[:2] == ("monitor", LLM_FEEDBACK)) == 8
    assert len([key for key in lag if key[:2] == ("intake", LLM_INTAKE)]) == settings.log.partitions
    assert found["quill_dead_letter_records_total", LLM_INTERACTIONS] == 1
    assert found["quill_log_up",] == 1
    rooms.close()


def test_a_log_that_is_away_leaves_the_rest_of_the_figures(settings, monkeypatch: pytest.MonkeyPatch):
    rooms = Rooms(settings)
    assert rooms.emitter.emit(FeedbackGiven(interaction_id="i")).wait(20)

    def away(*_: object) -> None:
        raise Unavailable("the log is away")

    monkeypatch.setattr(EmbeddedLog, "end_offsets", away)
    found = samples(TestClient(app_of(rooms)).get("/metrics").text)
    assert found["quill_log_up",] == 0
    assert found["quill_emitter_events_total", "acknowledged"] == 1
    monkeypatch.undo()
    rooms.close()
