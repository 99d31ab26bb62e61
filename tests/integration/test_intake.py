"""A real `quill up` takes in what other applications do: through the gateway, as traces, on the intake topic, as
feedback; all is stored. The examples of `docs/intake.md` run against it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import openai
import pytest
from chat_upstream import ID, WORDS, ChatUpstream
from installation import Installation, wait_until
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from infra.identity import new_id
from infra.llm import local
from store.opening import open_store
from streams.codec import encode
from streams.events import LLM_INTAKE, Event, FeedbackGiven, InteractionRecorded
from streams.opening import open_log

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "intake"
TEXT = "".join(WORDS)

pytestmark = pytest.mark.small_models


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Iterator[Installation]:
    upstream = ChatUpstream()
    installation = Installation(
        tmp_path_factory.mktemp("intake"),
        QUILL_GATEWAY_BASE_URL=upstream.url,
        OPENAI_BASE_URL=upstream.url,
        OPENAI_API_KEY="unused",
    )
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


def test_what_is_produced_to_the_intake_topic_is_stored_masked(here, store):
    name = new_id()
    asked = InteractionRecorded(
        interaction_id=name, conversation_id=name, prompt="To ann@example.org", response="Yes.", finish_reason="stop"
    )
    with closing(open_log(here.settings)) as log:
        for payload in (asked, FeedbackGiven(interaction_id=name, comment="Call ann@example.org")):
            log.append(LLM_INTAKE, [encode(Event(source="stranger", data=payload))])
    assert wait_until(lambda: store.interactions.get(name), 30).prompt == "To [EMAIL]"
    [given] = wait_until(lambda: store.interactions.feedback([name]), 30)
    assert given.comment == "Call [EMAIL]"
    assert httpx.get(f"{here.url}/healthz", trust_env=False).json()["parts"]["intake"]["state"] == "ok"


def example(here, name: str, *arguments: str) -> str:
    """What the last line of an example says after its last space."""
    command = [sys.executable, EXAMPLES / name, *arguments]
    run = subprocess.run(
        command, cwd=here.folder, env=here.environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()[-1]


def test_the_example_of_the_gateway_and_its_feedback_are_stored(here, store):
    name = example(here, "gateway.py", here.url)
    one = wait_until(lambda: store.interactions.list(tags={"stream": "true"}, ids=[name]), 30)[0][1]
    assert (one.prompt, one.response) in (("What does LoRA train?", TEXT), ("LoRA?", TEXT))
    assert wait_until(lambda: [given for given in store.interactions.feedback([name]) if given.reviewer == "ann"], 30)


def test_the_example_of_traces_is_stored_with_its_steps(here, store):
    name = example(here, "traces.py", here.url)
    one = wait_until(lambda: store.interactions.get(name), 30)
    assert (one.prompt, one.response, one.conversation_id) == ("What does QLoRA save?", "Memory.", "c-17")
    assert [step.name for step in one.spans] == ["answer", "search", "chat gpt-4o-mini"]


def test_the_example_of_a_wrapped_client_is_stored(here, store):
    assert example(here, "wrapped.py") == "True"
    one = wait_until(lambda: store.interactions.get("nightly-1"), 30)
    assert [(call.name, call.result) for call in one.tool_calls] == [("weather", "rain")]
    given = wait_until(lambda: [one for one in store.interactions.feedback([ID]) if "coherence" in one.ratings], 30)
    assert given[0].edited_response == "The question and one passage."
