"""The steps of a trace as they are kept beside the interactions in it: what led to a call and what the call led to.

Known are the spans that came in one export, which for OpenTelemetry's batching exporters is a whole trace or a run of
its spans in the order in which they ended.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from serving.otlp_spans import attributes_of, is_model_call
from streams.completions import plain
from streams.events import TraceSpan

MOST_STEPS = 100
"""Steps kept beside one interaction, besides those around it: the last that began before it ended."""
LONGEST_TEXT = 10_000
"""Characters of an attribute that are kept."""
SAID = (
    "gen_ai.input.messages",
    "gen_ai.output.messages",
    "gen_ai.system_instructions",
    "gen_ai.prompt.",
    "gen_ai.completion.",
    "llm.input_messages.",
    "llm.output_messages.",
    "input.value",
    "output.value",
)
"""Attributes of a model call with what was said, which stands in the interaction of that call already."""
KINDS = {
    Span.SPAN_KIND_INTERNAL: "internal",
    Span.SPAN_KIND_SERVER: "server",
    Span.SPAN_KIND_CLIENT: "client",
    Span.SPAN_KIND_PRODUCER: "producer",
    Span.SPAN_KIND_CONSUMER: "consumer",
}


class Trace:
    """The spans of one trace in one export."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._spans = {span.span_id: span for span in spans if len(span.span_id) == 8}
        self._by_start = sorted(self._spans.values(), key=lambda span: span.start_time_unix_nano)
        self._starts = [span.start_time_unix_nano for span in self._by_start]
        self._rank = {span_id: rank for rank, span_id in enumerate(_parents_first(self._by_start, self._spans))}
        self._steps: dict[bytes, TraceSpan] = {}

    def steps(self, call: Span) -> tuple[tuple[TraceSpan, ...], int]:
        """The steps around a call of this trace and before its end, parents before their children, and how many more
        there were."""
        until = bisect_right(self._starts, call.end_time_unix_nano)
        near = self._by_start[max(0, until - MOST_STEPS) : until]
        chosen = {span.span_id: span for span in (*self._around(call), *near)}
        ordered = sorted(chosen.values(), key=lambda span: self._rank.get(span.span_id, len(self._rank)))
        return tuple(self._step(span) for span in ordered), max(0, until - len(chosen))

    def _around(self, call: Span) -> Iterator[Span]:
        """The call and the spans that it is inside of; at most `MOST_STEPS`, because parents may go in a circle."""
        span: Span | None = call
        for _ in range(MOST_STEPS):
            if span is None:
                return
            yield span
            span = self._spans.get(span.parent_span_id)

    def _step(self, span: Span) -> TraceSpan:
        if span.span_id not in self._steps:
            self._steps[span.span_id] = step_of(span)
        return self._steps[span.span_id]


def step_of(span: Span) -> TraceSpan:
    """A span as it is kept; its status is in the attributes that OpenTelemetry names for it."""
    attributes = attributes_of(span.attributes)
    called = is_model_call(attributes)
    kept = {name: _text(value) for name, value in attributes.items() if not (called and name.startswith(SAID))}
    if span.status.code == Status.STATUS_CODE_ERROR:
        kept |= {"otel.status_code": "ERROR", "otel.status_description": _text(span.status.message)}
    kind = attributes.get("gen_ai.operation.name") or attributes.get("openinference.span.kind")
    return TraceSpan(
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex() or None,
        name=plain(span.name),
        kind=plain(kind).lower() or KINDS.get(span.kind, ""),
        start=moment(span.start_time_unix_nano),
        end=moment(max(span.start_time_unix_nano, span.end_time_unix_nano)),
        attributes=kept,
    )


def moment(nanoseconds: int) -> datetime:
    """A time of OTLP."""
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC)


def _parents_first(spans: Sequence[Span], known: Mapping[bytes, Span]) -> Iterator[bytes]:
    """Ids in depth-first order, children as they began. Spans whose parents go in a circle are not reached."""
    below: dict[bytes, list[bytes]] = defaultdict(list)
    for span in spans:
        below[span.parent_span_id if span.parent_span_id in known else b""].append(span.span_id)
    waiting = below[b""][::-1]
    while waiting:
        span_id = waiting.pop()
        yield span_id
        waiting += reversed(below[span_id])


def _text(value: Any) -> str:
    text = plain(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}… ({len(text)} characters)"
