"""The OpenAI shapes: whole, streamed, wrong."""

from __future__ import annotations

import json
import socket
import threading

import pytest

from infra.errors import Conflict, CorruptArtifact, InputError, NotFound, QuillError, SettingsError, Unavailable
from serving.faults import MAX_BODY, quill_error_object, status_of

QUESTION = {"messages": [{"role": "user", "content": "What does LoRA train?"}]}


def ask(client, **fields):
    return client.post("/v1/chat/completions", json=QUESTION | fields)


def events_of(response) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_completion_has_the_openai_fields_and_the_evidence(client):
    body = ask(client).json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "tiny"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "LoRA trains two small matrices. [1]"},
            "finish_reason": "stop",
        }
    ]
    assert body["id"] == body["interaction_id"]
    assert body["citations"] == [
        {"chunk_id": "sha256:c1", "source": "notes/lora.md", "quote": "LoRA trains two small matrices."}
    ]
    assert body["release"]["prompt"] == "grounded-post@1"
    assert body["usage"] == {"prompt_tokens": 40, "completion_tokens": 6, "total_tokens": 46}


def test_an_answer_that_used_all_its_tokens_ended_for_length(client):
    assert ask(client, max_tokens=6).json()["choices"][0]["finish_reason"] == "length"
    assert ask(client, max_completion_tokens=7).json()["choices"][0]["finish_reason"] == "stop"


def test_a_stream_carries_the_pieces_then_the_evidence_then_the_usage(client):
    events = events_of(ask(client, stream=True, stream_options={"include_usage": True}))
    pieces = [event["choices"][0]["delta"].get("content", "") for event in events if event["choices"]]
    assert "".join(pieces) == "LoRA trains two small matrices."
    assert len({event["id"] for event in events}) == 1
    assert [event["choices"][0]["finish_reason"] for event in events if event["choices"]] == [None, None, None, "stop"]
    final = events[-2]
    assert final["text"].endswith("[1]")
    assert final["interaction_id"] == final["id"]
    assert final["citations"][0]["chunk_id"] == "sha256:c1"
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["total_tokens"] == 46


def test_usage_is_streamed_only_when_asked_for(client):
    assert all("usage" not in event or event.get("interaction_id") for event in events_of(ask(client, stream=True)))


def test_an_answer_without_pieces_is_streamed_whole(client, platform):
    platform.pieces = []
    events = events_of(ask(client, stream=True))
    assert events[1]["choices"][0]["delta"] == {"content": " [1]"}


def test_the_conversation_and_the_earlier_messages_reach_the_answerer(client, platform):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": "LoRA?"}]},
    ]
    client.post("/v1/chat/completions", json={"messages": messages, "user": "ann"})
    client.post(
        "/v1/chat/completions",
        json={"messages": messages, "user": "ann", "metadata": {"conversation_id": "c7", "session_id": "s7"}},
    )
    first, second = platform.requests
    assert first.question == "What is\nLoRA?"
    assert [(one.role, one.content) for one in first.messages] == [("system", "Be brief."), ("assistant", "Hello.")]
    assert (first.conversation_id, second.conversation_id) == ("ann", "c7")
    assert (first.session_id, second.session_id) == ("", "s7")
    assert first.interaction_id != second.interaction_id


def test_model_names_a_channel_or_the_model_of_its_release(client, platform):
    platform.served = {"production": platform.release, "canary": platform.release.model_copy(update={"model": "new"})}
    for model in ("production", "tiny", "canary", "new"):
        assert ask(client, model=model).status_code == 200
    assert [request.channel for request in platform.requests] == ["production", "production", "canary", "canary"]
    listed = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert listed == ["tiny", "new", "production", "canary"]


def test_an_unknown_model_is_404_and_lists_what_there_is(client):
    response = ask(client, model="gpt-9")
    assert response.status_code == 404
    error = response.json()["error"]
    assert error["code"] == "not_found"
    assert error["type"] == "invalid_request_error"
    assert "gpt-9" in error["message"]
    assert "production" in error["message"]


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"messages": []}, 422, "messages"),
        ({"messages": [{"role": "user", "content": "  "}]}, 400, "question"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, 400, "question"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, 422, "role"),
        ({"messages": [{"role": "user", "content": "x" * 8001}]}, 400, "too long"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 422, "type"),
        ({"max_tokens": 0}, 422, "max_tokens"),
        ({"n": 2}, 422, "n is not valid"),
    ],
)
def test_a_malformed_request_gets_an_error_object(client, platform, fields, status, named):
    response = ask(client, **fields)
    assert response.status_code == status
    error = response.json()["error"]
    assert named in error["message"]
    assert error["type"] == "invalid_request_error"
    assert platform.requests == []


def test_a_body_that_is_not_json_gets_an_error_object(client):
    response = client.post("/v1/chat/completions", content=b"{", headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert "JSON" in response.json()["error"]["message"]


def test_an_unknown_path_gets_an_error_object(client):
    response = client.get("/v1/nothing")
    assert response.status_code == 404
    assert response.json()["error"]["message"] == "Not Found"


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_above_the_limit_is_413(client, platform, announced):
    body = b'{"messages": [{"role": "user", "content": "' + b"x" * MAX_BODY + b'"}]}'
    content = body if announced else iter([body[:500_000], body[500_000:]])
    response = client.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert f"at most {MAX_BODY} bytes" in response.json()["error"]["message"]
    assert platform.requests == []


def test_an_error_before_the_first_piece_still_has_its_status(client, platform):
    platform.problem = Unavailable("the language model cannot be reached", fix="start it")
    for stream in (False, True):
        response = ask(client, stream=stream)
        assert response.status_code == 503
        assert response.json()["error"] == {
            "message": "the language model cannot be reached; fix: start it",
            "type": "server_error",
            "param": None,
            "code": "unavailable",
        }


def test_an_error_in_the_middle_ends_the_stream_with_an_error_object(client, platform):
    platform.problem, platform.problem_after = Unavailable("the model went away"), 1
    lines = [line for line in ask(client, stream=True).text.splitlines() if line]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["message"] == "the model went away"
    assert not any("[DONE]" in line for line in lines)


def test_a_client_that_hangs_up_cancels_the_answer(live, platform):
    platform.pieces = [f"word{number} " for number in range(200)]
    first_sent, may_go_on = threading.Event(), threading.Event()

    def before_piece(number: int) -> None:
        if number == 1:
            first_sent.set()
        if number > 1:
            may_go_on.wait(10)

    platform.before_piece = before_piece
    body = json.dumps(QUESTION | {"stream": True}).encode()
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        assert first_sent.wait(10)
        assert b"200 OK" in connection.recv(65536)
    for _ in range(100):
        if platform.cancelled.wait(0.1):
            break
        may_go_on.set()
    assert platform.cancelled.is_set()


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InputError("x"), 400, "input_error"),
        (NotFound("x"), 404, "not_found"),
        (Conflict("x"), 409, "conflict"),
        (SettingsError("x"), 503, "settings_error"),
        (Unavailable("x"), 503, "unavailable"),
        (CorruptArtifact("x"), 503, "corrupt_artifact"),
        (QuillError("x"), 400, "quill_error"),
    ],
)
def test_each_kind_of_error_has_a_status_and_a_code(error, status, code):
    assert status_of(error) == status
    assert quill_error_object(error)["error"]["code"] == code
