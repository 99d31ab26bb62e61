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
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.trace import StatusCode

from serving import otlp_api
from serving.otlp_steps import MOST_STEPS
from streams.log import MAX_RECORD_BYTES

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


@pytest.mark.parametrize("kind", ["asyncio.exceptions.CancelledError", "GeneratorExit", "cancelled"])
def test_a_call_that_was_cancelled_is_kept_as_such_with_what_had_been_said(tracer, platform, kind):
    with tracer.start_as_current_span("chat", attributes={**CHAT, "error.type": kind}) as span:
        span.set_attribute("gen_ai.output.messages", json.dumps([parts("assistant", "Two")]))
        span.set_status(StatusCode.ERROR)
    [one] = platform.emitted
    assert (one.finish_reason, one.error, one.response) == ("cancelled", None, "Two")


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


def test_the_steps_of_a_trace_stand_beside_its_calls(live, platform, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{live.url}/v1/traces", timeout=10)))
    tracer = provider.get_tracer("test")
    said = {"gen_ai.input.messages": json.dumps([parts("user", "What?")])}
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "look_up"}
    found = {"openinference.span.kind": "RETRIEVER", "input.value": "What?", "top_k": 3}
    with tracer.start_as_current_span("answer"):
        with tracer.start_as_current_span("search", attributes=found):
            pass
        with (
            tracer.start_as_current_span("chat gpt-x", attributes={**CHAT, **said, "session.id": "s1"}),
            tracer.start_as_current_span("look_up", attributes=tool) as failing,
        ):
            failing.set_status(StatusCode.ERROR, "no such word")
        with tracer.start_as_current_span("after"):
            pass
    with tracer.start_as_current_span("another trace"):
        pass
    assert provider.force_flush(30_000)
    provider.shutdown()
    [one] = platform.emitted
    assert [(step.name, step.kind) for step in one.spans] == [
        ("answer", "internal"),
        ("search", "retriever"),
        ("chat gpt-x", "chat"),
        ("look_up", "execute_tool"),
    ]
    answer, search, chat, looked = one.spans
    assert [step.parent_id for step in one.spans] == [None, answer.span_id, answer.span_id, chat.span_id]
    assert (search.attributes["input.value"], search.attributes["top_k"]) == ("What?", "3")
    assert "gen_ai.input.messages" not in chat.attributes
    assert looked.attributes["otel.status_description"] == "no such word"
    assert answer.start <= chat.start <= looked.start <= looked.end <= chat.end <= answer.end
    assert (one.prompt, one.session_id) == ("What?", "s1")


def test_of_a_long_trace_the_nearest_steps_are_kept_with_those_around_the_call(client, platform):
    many = MOST_STEPS + 50
    times = [
        {"startTimeUnixNano": f"{10_000 + number}", "endTimeUnixNano": f"{20_000 + number}"} for number in range(many)
    ]
    around = {
        "traceId": TRACE,
        "spanId": "a" * 16,
        "name": "around",
        "startTimeUnixNano": "1",
        "endTimeUnixNano": "99999",
    }
    steps = [
        {"traceId": TRACE, "spanId": f"{number + 1:016x}", "name": "step", **times[number]} for number in range(many)
    ]
    call = llm_span(parentSpanId="a" * 16, startTimeUnixNano="30000", endTimeUnixNano="40000")
    assert client.post("/v1/traces", json=as_json(*steps, call, around)).status_code == 200
    [one] = platform.emitted
    assert [step.name for step in one.spans].count("step") == MOST_STEPS - 1
    kept = {step.span_id: step for step in one.spans}
    assert kept[SPAN].parent_id == "a" * 16
    assert "a" * 16 in kept
    assert one.tags["spans_left_out"] == str(many - MOST_STEPS + 1)


def test_parents_that_go_in_a_circle_stop_nothing(client, platform):
    other = llm_span(spanId="a" * 16, parentSpanId=SPAN)
    assert client.post("/v1/traces", json=as_json(llm_span(parentSpanId="a" * 16), other)).json() == {}
    assert [{step.span_id for step in one.spans} for one in platform.emitted] == [{SPAN, "a" * 16}] * 2


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


def test_a_call_too_long_to_be_kept_is_partial_success_and_the_others_are_kept(client, platform, monkeypatch):
    take = platform.emit

    def selective(payload, event_id=None):  # as the real emitter does
        too_long = len(payload.response) > MAX_RECORD_BYTES
        platform.refusal = "it cannot be encoded: too long" if too_long else ""
        return take(payload, event_id)

    monkeypatch.setattr(platform, "emit", selective)
    output = {"key": "output.value", "value": {"stringValue": "x" * (MAX_RECORD_BYTES + 1)}}
    long = llm_span(spanId="a" * 16)
    long["attributes"] = [*long["attributes"], output]
    for spans in ([long], [long, llm_span()]):
        body = gzip.compress(json.dumps(as_json(*spans)).encode(), 1)
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        response = client.post("/v1/traces", content=body, headers=headers)
        assert response.status_code == 200
        assert response.json()["partialSuccess"]["rejectedSpans"] == "1"
        assert "too long" in response.json()["partialSuccess"]["errorMessage"]
    assert [one.interaction_id for one in platform.emitted] == [f"{TRACE}-{SPAN}"]


def test_ids_with_a_nul_are_kept_without_it(client, platform):
    span = llm_span()
    span["attributes"] = [*span["attributes"], {"key": "session.id", "value": {"stringValue": "a\0b"}}]
    assert client.post("/v1/traces", json=as_json(span)).json() == {}
    assert platform.emitted[0].session_id == "a\ufffdb"


def test_spans_that_were_not_kept_may_be_sent_again(client, platform):
    platform.refusal = "the queue is full"
    response = client.post("/v1/traces", json=as_json(llm_span()))
    assert response.status_code == 503
    assert "the queue is full" in response.json()["message"]
