"""A traced call to a language model as the interaction that is recorded.

Read are the OpenTelemetry GenAI semantic conventions (messages as attributes, as span events, and in the older numbered
attributes of OpenLLMetry) and OpenInference. Spans of other work are none of ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from infra.errors import InputError
from streams.completions import SHORTEST_ID, ChatCall, content_text, counted, listed, mapped, plain
from streams.events import InteractionRecorded

OPERATIONS = frozenset({"chat", "text_completion", "generate_content"})
DETAILS = "gen_ai.client.inference.operation.details"
CANCELLED = re.compile(
    r"cancell?(ed|ation)(error|exception)?|(task|operation)canceledexception|aborterror|generatorexit"
)
Attributes = Mapping[str, Any]


def interaction_of(span: Span, resource: Attributes) -> InteractionRecorded | None:
    """The interaction of a span, without its steps; None for a span that is no call to a language model.

    Raises `InputError` for such a call without trace id or span id.
    """
    attributes = attributes_of(span.attributes)
    events = [(event.name, attributes_of(event.attributes)) for event in span.events]
    attributes |= {name: value for event, given in events if event == DETAILS for name, value in given.items()}
    if not is_model_call(attributes):
        return None
    if len(span.trace_id) != 16 or len(span.span_id) != 8:
        seen = f"{span.name}: {span.trace_id.hex() or 'none'}, {span.span_id.hex() or 'none'}"
        raise InputError("a span has no usable ids", seen=seen, rule="16 bytes of trace id, 8 of span id")
    call = ChatCall(_request(attributes, events), application=plain(resource.get("service.name")) or "application")
    call.hear(_answer(attributes, events))
    problem = _error(span, attributes, events)
    recorded = call.recorded(error=problem, cancelled=_cancelled(problem or ""))
    trace, session = span.trace_id.hex(), plain(attributes.get("session.id"))
    response_id = _first(attributes, "gen_ai.response.id")
    began = datetime.fromtimestamp(span.start_time_unix_nano / 1e9, UTC)
    origin = {"trace_id": trace, "span_id": span.span_id.hex(), "started_at": began.isoformat()}
    return recorded.model_copy(
        update={
            "interaction_id": response_id if len(response_id) >= SHORTEST_ID else f"{trace}-{span.span_id.hex()}",
            "conversation_id": _first(attributes, "gen_ai.conversation.id") or session or trace,
            "session_id": session or None,
            "latency_ms": max(0, span.end_time_unix_nano - span.start_time_unix_nano) / 1e6,
            "tags": recorded.tags | origin,
        }
    )


def is_model_call(attributes: Attributes) -> bool:
    """Whether these attributes are of a call that makes text; embeddings, tools and agents are not."""
    operation = plain(attributes.get("gen_ai.operation.name"))
    if operation:
        return operation in OPERATIONS
    kind = plain(attributes.get("openinference.span.kind"))
    return kind == "LLM" if kind else "gen_ai.request.model" in attributes


def attributes_of(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    """Attributes as a mapping."""
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    if kind == "kvlist_value":
        return attributes_of(value.kvlist_value.values)
    return getattr(value, kind) if kind else None


def _request(attributes: Attributes, events: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    system = _parsed(attributes.get("gen_ai.system_instructions"))
    messages = [_of_parts({"role": "system", "parts": system})] if system else []
    messages += (
        [_of_parts(one) for one in map(mapped, _parsed(attributes.get("gen_ai.input.messages")))]
        or [_of_openinference(one) for one in _numbered(attributes, "llm.input_messages.")]
        or [_of_openllmetry(one) for one in _numbered(attributes, "gen_ai.prompt.")]
        or [_of_event(name, given) for name, given in events if name.endswith(".message")]
        or [{"role": "user", "content": plain(attributes.get("input.value"))}]
    )
    return {"messages": messages, "model": _first(attributes, "gen_ai.request.model", "llm.model_name")}


def _answer(attributes: Attributes, events: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    outputs = [mapped(one) for one in _parsed(attributes.get("gen_ai.output.messages"))]
    messages = (
        [_of_parts(one) for one in outputs]
        or [_of_openinference(one) for one in _numbered(attributes, "llm.output_messages.")]
        or [_of_openllmetry(one) for one in _numbered(attributes, "gen_ai.completion.")]
        or [_of_event(name, mapped(given.get("message")) or given) for name, given in events if name == "gen_ai.choice"]
        or [{"content": plain(attributes.get("output.value"))}]
    )
    reasons = listed(attributes.get("gen_ai.response.finish_reasons"))
    said = [plain(one) for one in reasons] + [plain(one.get("finish_reason")) for one in [*outputs, *messages]]
    reason = next(filter(None, said), "stop")
    return {
        "id": _first(attributes, "gen_ai.response.id"),
        "model": _first(attributes, "gen_ai.response.model"),
        "usage": {
            "prompt_tokens": _count(attributes, "gen_ai.usage.input_tokens", "llm.token_count.prompt"),
            "completion_tokens": _count(attributes, "gen_ai.usage.output_tokens", "llm.token_count.completion"),
        },
        "choices": [
            {"index": place, "message": message, "finish_reason": reason} for place, message in enumerate(messages)
        ],
    }


def _error(span: Span, attributes: Attributes, events: list[tuple[str, dict[str, Any]]]) -> str | None:
    kind = plain(attributes.get("error.type"))
    if span.status.code != Status.STATUS_CODE_ERROR and not kind:
        return None
    raised = next((given for name, given in events if name == "exception"), {})
    kind = kind or plain(raised.get("exception.type")) or "error"
    said = span.status.message or plain(raised.get("exception.message"))
    return f"{kind}: {said}" if said and not said.startswith(kind) else said or kind


def _cancelled(problem: str) -> bool:
    """Whether an error says that the caller went away, as asyncio, .NET, Java and JavaScript name it."""
    return CANCELLED.fullmatch(problem.partition(":")[0].rpartition(".")[2].lower()) is not None


# --- messages, each in OpenAI's form ----------------------------------------------------------------------


def _of_parts(said: Mapping[str, Any]) -> dict[str, Any]:
    texts, calls = [], []
    for part in map(mapped, listed(said.get("parts"))):
        kind = plain(part.get("type"))
        if kind == "tool_call":
            calls.append(_call(part.get("name"), part.get("arguments")))
        elif kind == "tool_call_response":
            texts.append(_as_text(part.get("response", part.get("result"))))
        elif kind != "reasoning":
            texts.append(plain(part.get("content")) or f"[{kind or 'part'}]")
    return {"role": said.get("role"), "content": "\n".join(texts), "tool_calls": calls}


def _of_openinference(fields: Attributes) -> dict[str, Any]:
    parts = [plain(part.get("message_content.text")) for part in _numbered(fields, "message.contents.")]
    calls = [
        _call(one.get("tool_call.function.name"), one.get("tool_call.function.arguments"))
        for one in _numbered(fields, "message.tool_calls.")
    ]
    content = plain(fields.get("message.content")) or "\n".join(part or "[part]" for part in parts)
    return {"role": fields.get("message.role"), "content": content, "tool_calls": calls}


def _of_openllmetry(fields: Attributes) -> dict[str, Any]:
    calls = [_call(one.get("name"), one.get("arguments")) for one in _numbered(fields, "tool_calls.")]
    return {**fields, "content": content_text(fields.get("content")), "tool_calls": calls}


def _of_event(name: str, fields: Attributes) -> dict[str, Any]:
    role = name.removeprefix("gen_ai.").removesuffix(".message")
    return {**fields, "role": role, "content": _as_text(fields.get("content"))}


def _call(name: Any, arguments: Any) -> dict[str, Any]:
    return {"function": {"name": plain(name), "arguments": _as_text(arguments)}}


def _as_text(value: Any) -> str:
    return plain(value) if isinstance(value, str) or value is None else json.dumps(value, ensure_ascii=False)


def _numbered(fields: Attributes, prefix: str) -> list[dict[str, Any]]:
    """`prefix0.a`, `prefix0.b`, `prefix1.a` … as one mapping per number, in order."""
    found: dict[int, dict[str, Any]] = {}
    for name, value in fields.items():
        number, _, rest = name.removeprefix(prefix).partition(".")
        if name.startswith(prefix) and number.isdecimal() and rest:
            found.setdefault(int(number), {})[rest] = value
    return [found[number] for number in sorted(found)]


def _parsed(value: Any) -> list[Any]:
    """An array, given as such or as JSON."""
    try:
        read = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return []
    return list(listed(read))


def _first(attributes: Attributes, *names: str) -> str:
    return next((text for name in names if (text := plain(attributes.get(name)))), "")


def _count(attributes: Attributes, *names: str) -> int:
    return next((number for name in names if (number := counted(attributes.get(name)))), 0)
