"""OTLP over HTTP: traces of applications come in, each call to a language model is recorded.

Answers follow the OTLP specification (opentelemetry.io/docs/specs/otlp, section OTLP/HTTP): the request's encoding,
`google.rpc.Status` for failures, partial success for spans that were not taken.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response
from google.protobuf.json_format import MessageToJson, ParseDict, ParseError
from google.protobuf.message import DecodeError
from google.rpc.code_pb2 import INVALID_ARGUMENT, UNAVAILABLE
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from starlette.concurrency import run_in_threadpool

from infra.errors import InputError, QuillError, Unavailable
from infra.identity import content_id
from serving.otlp_spans import Attributes, attributes_of, interaction_of
from serving.otlp_steps import Trace
from serving.surface import Platform
from streams.codec import encode
from streams.events import LLM_INTERACTIONS, Event, InteractionRecorded, TraceSpan
from streams.log import check_appendable
from streams.masking import mask_payload

PROTOBUF, JSON = "application/x-protobuf", "application/json"
UNPACKED = 64_000_000
"""Most bytes of a request once unpacked; a few kilobytes of gzip can hold gigabytes."""
KEEP_SECONDS = 10.0
IDS = frozenset({"traceId", "spanId", "parentSpanId"})


def router(platform: Platform) -> APIRouter:
    """The route, answered by the platform."""
    routes = APIRouter(tags=["OpenTelemetry"])

    @routes.post("/v1/traces", summary="OTLP/HTTP traces; calls to language models are recorded")
    async def traces(request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        body = await request.body()
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        return await run_in_threadpool(_answered, platform, kind, encoding, body)

    return routes


def read_request(kind: str, encoding: str, body: bytes) -> ExportTraceServiceRequest:
    """An export request. Raises `InputError` for what is none."""
    if kind not in (PROTOBUF, JSON):
        raise InputError("the content type is not OTLP", seen=kind or "none", rule=f"{PROTOBUF} or {JSON}")
    content = _unpacked(encoding, body)
    request = ExportTraceServiceRequest()
    try:
        if kind == PROTOBUF:
            request.ParseFromString(content)
        else:
            ParseDict(_from_json(content), request, ignore_unknown_fields=True)
    except (DecodeError, ParseError, ValueError, RecursionError) as error:
        raise InputError("the body is not an OTLP trace export", seen=f"{len(body)} bytes", rule=str(error)) from error
    return request


def keep(platform: Platform, request: ExportTraceServiceRequest) -> ExportTraceServiceResponse:
    """Put the calls to language models on the stream and wait until they are durable.

    What can never be kept (a span without ids, or one that is too long) is told as partial success. Raises
    `Unavailable`, for which clients send the whole request again, when another call was not kept; those that were have
    the same event ids the second time.
    """
    sent, problems = [], []
    for found in _interactions(request):
        if isinstance(found, InputError):
            problems.append(str(found))
        else:
            sent.append((found, platform.emit(found, _event_id(found))))
    deadline = time.monotonic() + KEEP_SECONDS
    for interaction, receipt in sent:
        if receipt.wait(max(0.0, deadline - time.monotonic())):
            continue
        problem = _never_kept(interaction) if receipt.reason else ""
        if not problem:
            reason = receipt.reason or "it is not durable yet"
            raise Unavailable("the spans were not kept", seen=reason, fix="send them again")
        problems.append(problem)
    response = ExportTraceServiceResponse()
    if problems:
        response.partial_success.rejected_spans = len(problems)
        response.partial_success.error_message = problems[0]
    return response


def _never_kept(interaction: InteractionRecorded) -> str:
    """Why no log takes this interaction, however often it is sent; empty when one would."""
    try:
        record = encode(Event(data=mask_payload(interaction)))
        check_appendable(LLM_INTERACTIONS, [record])
    except InputError as error:
        return f"the span {interaction.tags['span_id']} cannot be kept: {error}"
    return ""


def _answered(platform: Platform, kind: str, encoding: str, body: bytes) -> Response:
    try:
        return _encoded(kind, 200, keep(platform, read_request(kind, encoding, body)))
    except InputError as error:
        return _encoded(kind, 400, Status(code=INVALID_ARGUMENT, message=str(error)))
    except QuillError as error:
        return _encoded(kind, 503, Status(code=UNAVAILABLE, message=str(error)))


def _encoded(kind: str, status: int, message: Any) -> Response:
    if kind == PROTOBUF:
        return Response(message.SerializeToString(), status, media_type=PROTOBUF)
    return Response(MessageToJson(message, indent=None), status, media_type=JSON)


def _interactions(request: ExportTraceServiceRequest) -> Iterator[InteractionRecorded | InputError]:
    spans = list(_spans(request))
    traces: dict[bytes, list[Span]] = defaultdict(list)
    for span, _ in spans:
        traces[span.trace_id].append(span)
    read = {trace_id: Trace(its_spans) for trace_id, its_spans in traces.items()}
    for span, resource in spans:
        try:
            found = interaction_of(span, resource)
            if found is not None:
                yield _with_steps(found, *read[span.trace_id].steps(span))
        except InputError as error:
            yield error
        except (ValueError, OverflowError) as error:  # a time or a value that nothing of ours can hold
            yield InputError(f"the span {span.span_id.hex()} cannot be read", rule=str(error).splitlines()[0])


def _spans(request: ExportTraceServiceRequest) -> Iterator[tuple[Span, Attributes]]:
    """Each span with the attributes of its resource."""
    for group in request.resource_spans:
        resource = attributes_of(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                yield span, resource


def _with_steps(found: InteractionRecorded, steps: tuple[TraceSpan, ...], left_out: int) -> InteractionRecorded:
    tags = found.tags | ({"spans_left_out": str(left_out)} if left_out else {})
    return found.model_copy(update={"spans": steps, "tags": tags})


def _event_id(interaction: InteractionRecorded) -> str:
    place = [interaction.tags["trace_id"], interaction.tags["span_id"]]
    return content_id("span", place).removeprefix("sha256:")[:32]


def _unpacked(encoding: str, body: bytes) -> bytes:
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise InputError("the content encoding is unknown", seen=encoding, rule="gzip, deflate or none")
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        content = unpacker.decompress(body, UNPACKED)
    except zlib.error as error:
        raise InputError(f"the body is not {encoding}", seen=f"{len(body)} bytes", rule=str(error)) from error
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise InputError(
            f"the {encoding} body is cut off or too large", seen=f"{len(body)} bytes", rule=f"at most {UNPACKED} bytes"
        )
    return content


def _from_json(content: bytes) -> dict[str, Any]:
    tree = _with_base64_ids(json.loads(content))
    if not isinstance(tree, dict):
        raise ValueError("the JSON is no object")
    return tree


def _with_base64_ids(value: Any) -> Any:
    """OTLP writes ids as hex digits where the JSON form of protobuf has base64."""
    if isinstance(value, list):
        return [_with_base64_ids(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        name: base64.b64encode(bytes.fromhex(one)).decode()
        if name in IDS and isinstance(one, str)
        else _with_base64_ids(one)
        for name, one in value.items()
    }
