"""The gateway between the real OpenAI client and an endpoint: bytes pass, calls are recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import openai
import pytest
from chat_upstream import ID, TOOL, WORDS, ChatUpstream
from installation import wait_until

from infra.settings import load_settings
from serving import gateway_api
from serving.gateway_api import (
    APPLICATION_HEADER,
    CONVERSATION_HEADER,
    INTERACTION_HEADER,
    PREFIX,
    SESSION_HEADER,
    upstream_of,
)

ASK = [{"role": "user", "content": "What does LoRA train?"}]
TEXT = "".join(WORDS)


@pytest.fixture
def upstream(monkeypatch) -> Iterator[ChatUpstream]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    opened = ChatUpstream()
    yield opened
    opened.close()


def behind(tmp_path, **settings):
    overrides = {"home": tmp_path, **{f"gateway.{name}": value for name, value in settings.items()}}
    return upstream_of(load_settings(tmp_path / "none.toml", {}, overrides))


@pytest.fixture
def app(app, platform, upstream, tmp_path):
    app.include_router(gateway_api.router(platform, behind(tmp_path, base_url=upstream.url)))
    return app


@pytest.fixture
def through(live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=live.url + PREFIX, api_key="mine", max_retries=0) as client:
        yield client


def recorded(platform, count: int = 1):
    wait_until(lambda: len(platform.emitted) >= count, 10)
    assert len(platform.emitted) == count
    return platform.emitted


def test_a_completion_passes_and_is_recorded(through, platform, upstream):
    completion = through.chat.completions.create(
        model="ok",
        messages=ASK,
        metadata={"conversation_id": "c1"},
        extra_body={"unheard_of": {"a": [1]}},
        extra_headers={APPLICATION_HEADER: "blog"},
    )
    assert completion.choices[0].message.content == TEXT
    [(path, headers, body)] = upstream.received
    assert path == "/v1/chat/completions"
    assert json.loads(body)["unheard_of"] == {"a": [1]}
    assert headers["authorization"] == "Bearer mine"
    assert APPLICATION_HEADER not in headers
    [one] = recorded(platform)
    assert (one.interaction_id, one.conversation_id, one.application) == (ID, "c1", "blog")
    assert (one.prompt, one.response, one.finish_reason) == (ASK[0]["content"], TEXT, "stop")
    assert (one.usage.input_tokens, one.usage.output_tokens) == (7, 3)
    assert one.latency_ms > 0


@pytest.mark.parametrize("stream", [False, True])
def test_requests_and_answers_pass_byte_for_byte(live, platform, upstream, stream):
    body = json.dumps({"model": "ok", "messages": ASK, "stream": stream}, indent=3).encode()
    response = httpx.post(f"{live.url}{PREFIX}/chat/completions", content=body, trust_env=False)
    assert upstream.received[0][2] == body
    assert response.content == b"".join(upstream.sent)
    if not stream:
        assert response.headers["x-request-id"] == "req_1"
    [one] = recorded(platform)
    assert (one.response, one.finish_reason, one.usage.output_tokens) == (TEXT, "stop", 3)


def test_a_text_completion_is_recorded_and_embeddings_pass_unrecorded(live, through, platform, upstream):
    said = through.completions.create(model="ok", prompt="LoRA trains", user="u1")
    assert said.choices[0].text == TEXT
    pieces = through.completions.create(model="ok", prompt=["LoRA trains", "QLoRA"], stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == TEXT
    body = json.dumps({"model": "ok", "input": "words"}, indent=3).encode()
    response = httpx.post(f"{live.url}{PREFIX}/embeddings", content=body, trust_env=False)
    assert (upstream.received[-1][2], response.content) == (body, upstream.sent[-1])
    assert INTERACTION_HEADER not in response.headers
    whole, streamed = recorded(platform, 2)
    assert (whole.prompt, whole.response, whole.finish_reason) == ("LoRA trains", TEXT, "stop")
    assert (streamed.prompt, streamed.response, streamed.finish_reason) == ("LoRA trains", TEXT, "stop")
    assert (whole.interaction_id, whole.conversation_id, whole.usage.output_tokens) == (ID, "u1", 3)


@pytest.mark.parametrize("model", ["ok", "refuse"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_header_names_the_interaction_and_headers_name_its_conversation(live, platform, upstream, stream, model):
    named = {CONVERSATION_HEADER: "c9", SESSION_HEADER: "s9"}
    ask = {"model": model, "messages": ASK, "stream": stream}
    response = httpx.post(f"{live.url}{PREFIX}/chat/completions", json=ask, headers=named, trust_env=False)
    assert not set(named) & set(upstream.received[0][1])
    [one] = recorded(platform)
    assert response.headers[INTERACTION_HEADER] == one.interaction_id
    assert (one.conversation_id, one.session_id) == ("c9", "s9")
    assert (one.interaction_id == ID) == (model == "ok")


def test_a_stream_whose_first_event_is_late_is_named_by_the_gateway_and_passes_whole(
    live, platform, upstream, monkeypatch
):
    monkeypatch.setattr(gateway_api, "NAMING_SECONDS", 0.05)
    ask = {"model": "asleep", "messages": ASK, "stream": True}
    url = f"{live.url}{PREFIX}/chat/completions"
    with httpx.stream("POST", url, json=ask, trust_env=False) as response:
        upstream.release.set()
        assert response.read() == b"".join(upstream.sent)
    [one] = recorded(platform)
    assert one.interaction_id == response.headers[INTERACTION_HEADER] != ID
    assert (one.response, one.tags["response_id"]) == (TEXT, ID)


def test_turns_of_a_session_and_their_tool_calls_are_kept(through, platform):
    turns = [
        {"role": "system", "content": "Be brief."},
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [TOOL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "a method"},
    ]
    metadata = {"conversation_id": "c1", "session_id": "s1"}
    list(through.chat.completions.create(model="tools", messages=turns, metadata=metadata, stream=True))
    [one] = recorded(platform)
    assert (one.conversation_id, one.session_id, one.prompt) == ("c1", "s1", ASK[0]["content"])
    assert [message.role for message in one.messages] == ["system", "assistant", "tool"]
    assert [(call.name, call.arguments) for call in one.tool_calls] == [("look_up", '{"what": "LoRA"}')]


def test_the_configured_key_replaces_the_callers(platform, upstream, tmp_path):
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    app = FastAPI()
    app.include_router(gateway_api.router(platform, behind(tmp_path, base_url=upstream.url, api_key="ours")))
    with TestClient(app) as client:
        assert client.get(f"{PREFIX}/models?limit=2", headers={"Authorization": "Bearer mine"}).json()["data"]
    [(path, headers, _)] = upstream.received
    assert (path, headers["authorization"]) == ("/v1/models?limit=2", "Bearer ours")
    assert platform.emitted == []


def test_the_writers_key_goes_to_the_writers_endpoint_only(tmp_path):
    writer = {"llm.endpoint": "http://writer/v1/", "llm.api_key": "secret"}
    fallen_back = upstream_of(load_settings(tmp_path / "none.toml", {}, writer))
    assert (fallen_back.base_url, fallen_back.api_key.get_secret_value()) == ("http://writer/v1", "secret")
    other = upstream_of(load_settings(tmp_path / "none.toml", {}, {**writer, "gateway.base_url": "http://other/v1"}))
    assert (other.base_url, other.api_key.get_secret_value()) == ("http://other/v1", "")


def test_a_stream_that_the_client_leaves_is_cancelled(through, platform, upstream):
    stream = through.chat.completions.create(model="held", messages=ASK, stream=True)
    stream.close()
    [one] = recorded(platform)
    upstream.release.set()
    assert (one.finish_reason, one.error) == ("cancelled", None)


def test_a_stream_that_breaks_off_is_an_error(through, platform):
    assert len(list(through.chat.completions.create(model="cut", messages=ASK, stream=True))) == len(WORDS)
    [one] = recorded(platform)
    assert (one.response, one.finish_reason) == (TEXT, "error")


def test_an_error_of_the_upstream_passes_with_its_status(through, platform):
    with pytest.raises(openai.RateLimitError, match="slow down"):
        through.chat.completions.create(model="refuse", messages=ASK)
    [one] = recorded(platform)
    assert (one.finish_reason, one.error) == ("error", "HTTP 429: slow down")


@pytest.mark.parametrize("stream", [False, True])
def test_an_upstream_that_is_down_is_502_and_recorded(through, platform, upstream, stream):
    upstream.close()
    with pytest.raises(openai.InternalServerError) as raised:
        through.chat.completions.create(model="ok", messages=ASK, stream=stream)
    assert raised.value.status_code == 502
    assert raised.value.body["code"] == "upstream_unavailable"
    assert upstream.url in raised.value.body["message"]
    [one] = recorded(platform)
    assert raised.value.response.headers[INTERACTION_HEADER] == one.interaction_id
    assert (one.finish_reason, one.prompt) == ("error", ASK[0]["content"])
    assert one.error.startswith("ConnectError")


def test_without_an_upstream_the_setting_is_named(platform, tmp_path):
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from serving import faults

    app = FastAPI()
    faults.install(app)
    app.include_router(gateway_api.router(platform, behind(tmp_path)))
    response = TestClient(app).post(f"{PREFIX}/chat/completions", json={"messages": ASK})
    assert response.status_code == 503
    assert "gateway.base_url" in response.json()["error"]["message"]


def test_a_body_with_pictures_may_be_larger_than_ours(live, platform, upstream):
    large = {"model": "ok", "messages": [{"role": "user", "content": "x" * 1_500_000}]}
    response = httpx.post(f"{live.url}{PREFIX}/chat/completions", json=large, trust_env=False, timeout=30)
    assert response.status_code == 200
    assert len(recorded(platform)[0].prompt) == 1_500_000
