"""Feedback over HTTP: accepted once it is durable, refused with the reason."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from serving import faults, feedback_api
from streams.codec import decode
from streams.events import LLM_FEEDBACK, TOPICS, FeedbackGiven
from streams.opening import open_emitter, open_log

GIVEN = {
    "interaction_id": "i1",
    "ratings": {"relevance": 4},
    "edited_response": "LoRA trains two matrices.",
    "preferred_over": "i0",
    "comment": "good",
    "reviewer": "ann",
}


def test_everything_that_was_said_is_put_on_the_stream(client, platform):
    response = client.post("/v1/feedback", json=GIVEN)
    assert response.status_code == 202
    assert response.json()["interaction_id"] == "i1"
    assert platform.emitted == [FeedbackGiven(**GIVEN)]


def test_an_accepted_feedback_stands_in_the_log_under_the_answered_event_id(settings):
    log = open_log(settings)
    log.ensure_topics(TOPICS)
    emitter = open_emitter(settings, log)
    app = FastAPI()
    faults.install(app)
    app.include_router(feedback_api.router(emitter))
    response = TestClient(app).post("/v1/feedback", json=GIVEN)
    written = [
        decode(record) for partition in log.end_offsets(LLM_FEEDBACK) for record in log.read(LLM_FEEDBACK, partition, 0)
    ]
    assert [event.id for event in written] == [response.json()["event_id"]]
    assert written[0].data == FeedbackGiven(**GIVEN)
    emitter.close()
    log.close()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"ratings": {"relevance": 6}}, "relevance"),
        ({"ratings": {"beauty": 3}}, "ratings"),
        ({"ratings": {}}, "at least one of"),
        ({"comment": "  "}, "at least one of"),
        ({"preferred_over": "i1"}, "another interaction"),
        ({"interaction_id": " ", "comment": "x"}, "interaction_id"),
        ({"interaction_id": None, "comment": "x"}, "interaction_id"),
        ({"comment": "x", "stars": 5}, "stars"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_rule(client, platform, fields, named):
    response = client.post("/v1/feedback", json={"interaction_id": "i1"} | fields)
    assert response.status_code == 422
    assert named in response.json()["error"]["message"]
    assert platform.emitted == []


def test_a_feedback_that_was_not_kept_is_503_with_the_reason(client, platform):
    platform.refusal = "the queue is full"
    response = client.post("/v1/feedback", json=GIVEN)
    assert response.status_code == 503
    assert "the queue is full" in response.json()["error"]["message"]
