"""A real `quill up` takes in what other applications do: through the gateway, as traces, as feedback; all is stored."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import openai
import pytest
from chat_upstream import ID, WORDS, ChatUpstream
from installation import Installation, wait_until
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from infra.llm import local
from store.opening import open_store

pytestmark = pytest.mark.small_models


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Iterator[Installation]:
    upstream = ChatUpstream()
    installation = Installation(tmp_path_factory.mktemp("intake"), QUILL_GATEWAY_BASE_URL=upstream.url)
    try:
        installation.start()
        yield installation
    finally:
        installation.end()
        local.stop(installation.settings.models)
        upstream.close()


@pytest.fixture
def store(here):
    opened = open_store(here.settings)
    yield opened
    opened.close()


def test_a_call_through_the_gateway_and_its_feedback_are_stored(here, store):
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(base_url=f"{here.url}/gateway/v1", api_key="x", max_retries=0, http_client=http) as client:
        stream = client.chat.completions.create(
            model="ok", messages=[{"role": "user", "content": "LoRA?"}], stream=True
        )
        assert "".join(one.choices[0].delta.content or "" for one in stream if one.choices) == "".join(WORDS)
    rating = {"interaction_id": ID, "ratings": {"relevance": 5}, "edited_response": "Shorter."}
    answer = httpx.post(f"{here.url}/v1/feedback", json=rating, trust_env=False)
    assert answer.status_code == 202
    assert answer.json()["event_id"]
    assert wait_until(lambda: store.interactions.get(ID), 30).response == "".join(WORDS)
    [given] = wait_until(lambda: store.interactions.feedback([ID]), 30)
    assert (given.ratings, given.edited_response) == ({"relevance": 5}, "Shorter.")


def test_a_traced_call_is_stored(here, store, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{here.url}/v1/traces")))
    said = json.dumps([{"role": "user", "parts": [{"type": "text", "content": "What is QLoRA?"}]}])
    call = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.input.messages": said}
    with provider.get_tracer("test").start_as_current_span("chat m", attributes=call) as span:
        pass
    assert provider.force_flush(30_000)
    provider.shutdown()
    context = span.get_span_context()
    name = f"{context.trace_id:032x}-{context.span_id:016x}"
    assert wait_until(lambda: store.interactions.get(name), 30).prompt == "What is QLoRA?"
