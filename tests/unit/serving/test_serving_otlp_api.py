"""Traces over OTLP/HTTP: the real OpenTelemetry exporter on one side, recorded interactions on the other."""

from __future__ import annotations

import gzip
import json

import pytest
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import StatusCode

from serving import otlp_api

PROTOBUF = {"Content-Type": "application/x-protobuf"}
CHAT = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-x", "gen_ai.provider.name": "openai"}
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def app(app, platform):
    app.include_router(otlp_api.router(platform))
    return app


@pytest.fixture(params=[Compression.NoCompression, Compression.Gzip])
def tracer(request, live, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    provider = TracerProvider(resource=Resource.create({"service.name": "blog"}))
    exporter = OTLPSpanExporter(endpoint=f"{live.url}/v1/traces", compression=request.param, timeout=10)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider.get_tracer("test")
    provider.shutdown()


def parts(role: str, *texts: str, **fields) -> dict:
    return {"role": role, "parts": [{"type": "text", "content": text} for text in texts], **fields}


def test_the_real_exporter_delivers_a_call_by_the_genai_conventions(tracer, platform):
    asked = [parts("user", "Hello"), parts("assistant", "Hi"), parts("user", "What does LoRA train?")]
    called = {"type": "tool_call", "name": "look_up", "arguments": {"what": "LoRA"}}
    answer = {"role": "assistant", "parts": [{"type": "text", "content": "Two."}, called], "finish_reason": "tool_call"}
    with tracer.start_as_current_span("agent"), tracer.start_as_current_span("chat gpt-x", attributes=CHAT) as span:
        span.set_attributes(
            {
                "gen_ai.system_instructions": json.dumps([{"type": "text", "content": "Be brief."}]),
                "gen_ai.input.messages": json.dumps(asked),
                "gen_ai.output.messages": json.dumps([answer]),
                "gen_ai.response.finish_reasons": ["tool_call"],
                "gen_ai.usage.input_tokens": 7,
                "gen_ai.usage.output_tokens": 3,
                "gen_ai.conversation.id": "c1",
            }
        )
    [one] = platform.emitted
    assert (one.application, one.conversation_id, one.prompt) == ("blog", "c1", "What does LoRA train?")
    said = [(message.role, message.content) for message in one.messages]
    assert said == [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi")]
    assert one.response == 'Two.\n[tool call] look_up({"what": "LoRA"})'
    assert [(call.name, call.arguments) for call in one.tool_calls] == [("look_up", '{"what": "LoRA"}')]
    assert (one.usage.input_tokens, one.usage.output_tokens, one.finish_reason) == (7, 3, "stop")
    context = span.get_span_context()
    assert one.interaction_id == f"{context.trace_id:032x}-{context.span_id:016x}"
    assert one.tags["model"] == "gpt-x"
    assert one.latency_ms > 0


def test_openinference_attributes_are_read(tracer, platform):
    with tracer.start_as_current_span("ChatCompletion") as span:
        span.set_attributes(
            {
                "openinference.span.kind": "LLM",
                "llm.model_name": "gpt-y",
                "session.id": "s1",
                "llm.input_messages.0.message.role": "system",
                "llm.input_messages.0.message.content": "Be brief.",
                "llm.input_messages.1.message.role": "user",
                "llm.input_messages.1.message.contents.0.message_content.text": "What?",
                "llm.output_messages.0.message.role": "assistant",
                "llm.output_messages.0.message.content": "Two matrices.",
                "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "look_up",
                "llm.token_count.prompt": 5,
                "llm.token_count.completion": 2,
            }
        )
    [one] = platform.emitted
    assert (one.prompt, one.response) == ("What?", "Two matrices.\n[tool call] look_up()")
    assert (one.conversation_id, one.session_id, one.tags["model"]) == ("s1", "s1", "gpt-y")
    assert (one.usage.input_tokens, one.usage.output_tokens) == (5, 2)


def test_older_numbered_attributes_and_span_events_are_read(tracer, platform):
    numbered = {"gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": "A?", "gen_ai.completion.0.content": "B."}
    with tracer.start_as_current_span("openai.chat", attributes={**CHAT, **numbered}):
        pass
    with tracer.start_as_current_span("chat", attributes=CHAT) as span:
        span.add_event("gen_ai.user.message", {"content": "C?"})
        span.add_event("gen_ai.choice", {"content": "D.", "finish_reason": "length"})
    first, second = platform.emitted
    assert (first.prompt, first.response, first.finish_reason) == ("A?", "B.", "stop")
    assert (second.prompt, second.response, second.finish_reason) == ("C?", "D.", "length")


def test_an_error_is_kept_and_other_work_is_not_recorded(tracer, platform):
    for attributes in ({"gen_ai.operation.name": "embeddings"}, {"openinference.span.kind": "TOOL"}, {}):
        with tracer.start_as_current_span("other", attributes=attributes):
            pass
    with tracer.start_as_current_span("chat", attributes={**CHAT, "error.type": "TimeoutError"}) as span:
        span.set_status(StatusCode.ERROR, "no answer in 30 s")
    [one] = platform.emitted
    assert (one.finish_reason, one.error) == ("error", "TimeoutError: no answer in 30 s")
    assert one.conversation_id == one.tags["trace_id"]


def as_json(*spans: dict) -> dict:
    return {"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]}


def llm_span(**fields) -> dict:
    attributes = [{"key": key, "value": {"stringValue": value}} for key, value in CHAT.items()]
    times = {"startTimeUnixNano": "1700000000000000000", "endTimeUnixNano": "1700000001500000000"}
    return {"traceId": TRACE, "spanId": SPAN, "name": "chat", "kind": 3, "attributes": attributes, **times, **fields}


def test_json_has_ids_in_hex_and_gets_json_back(client, platform):
    response = client.post("/v1/traces", json=as_json(llm_span(unheardOf=1)))
    assert (response.status_code, response.json()) == (200, {})
    [one] = platform.emitted
    assert (one.interaction_id, one.latency_ms) == (f"{TRACE}-{SPAN}", 1500.0)
    assert one.tags["started_at"] == "2023-11-14T22:13:20+00:00"


def test_a_span_without_ids_is_reported_as_partial_success(client, platform):
    response = client.post("/v1/traces", json=as_json(llm_span(), llm_span(spanId="")))
    assert response.status_code == 200
    partial = response.json()["partialSuccess"]
    assert partial["rejectedSpans"] == "1"
    assert "no usable ids" in partial["errorMessage"]
    assert len(platform.emitted) == 1


def test_an_empty_export_is_a_success(client):
    response = client.post("/v1/traces", content=b"", headers=PROTOBUF)
    assert response.status_code == 200
    assert not ExportTraceServiceResponse.FromString(response.content).HasField("partial_success")


@pytest.mark.parametrize(
    ("headers", "body", "named"),
    [
        (PROTOBUF, b"\xff\xff\xff", "not an OTLP trace export"),
        ({**PROTOBUF, "Content-Encoding": "gzip"}, b"plain", "not gzip"),
        ({**PROTOBUF, "Content-Encoding": "gzip"}, gzip.compress(b"x" * 99)[:-9], "cut off"),
        ({**PROTOBUF, "Content-Encoding": "gzip"}, gzip.compress(b"\0" * 65_000_000, 1), "too large"),
        ({**PROTOBUF, "Content-Encoding": "br"}, b"x", "encoding is unknown"),
        ({"Content-Type": "application/json"}, b"{", "not an OTLP trace export"),
        ({"Content-Type": "application/json"}, b"[]", "not an OTLP trace export"),
        ({"Content-Type": "application/json"}, json.dumps(as_json(llm_span(traceId="xyz"))).encode(), "non-hex"),
        ({"Content-Type": "text/plain"}, b"x", "content type"),
    ],
)
def test_what_is_malformed_is_400_with_the_reason(client, platform, headers, body, named):
    response = client.post("/v1/traces", content=body, headers=headers)
    assert response.status_code == 400
    if headers["Content-Type"] == "application/x-protobuf":
        message = Status.FromString(response.content).message
    else:
        message = response.json()["message"]
    assert named in message
    assert platform.emitted == []


def test_spans_that_were_not_kept_may_be_sent_again(client, platform):
    platform.refusal = "the queue is full"
    response = client.post("/v1/traces", json=as_json(llm_span()))
    assert response.status_code == 503
    assert "the queue is full" in response.json()["message"]
