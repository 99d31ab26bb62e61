"""OTLP over HTTP: traces of applications come in, each call to a language model is recorded.

Answers follow the OTLP specification (opentelemetry.io/docs/specs/otlp, section OTLP/HTTP): the request's encoding,
`google.rpc.Status` for failures, partial success for spans that were not taken.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
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
from starlette.concurrency import run_in_threadpool

from infra.errors import InputError, QuillError, Unavailable
from infra.identity import content_id
from serving.otlp_spans import attributes_of, interaction_of
from serving.surface import Platform
from streams.events import InteractionRecorded

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

    A span sent again has the event id of the first. Raises `Unavailable`, for which clients try again, when none of
    them was kept.
    """
    receipts, problems = [], []
    for found in _interactions(request):
        if isinstance(found, InputError):
            problems.append(str(found))
        else:
            receipts.append(platform.emit(found, _event_id(found)))
    deadline = time.monotonic() + KEEP_SECONDS
    lost = [one for one in receipts if not one.wait(max(0.0, deadline - time.monotonic()))]
    reasons = [one.reason or "it is not durable yet" for one in lost]
    if lost and len(lost) == len(receipts):
        raise Unavailable("the spans were not kept", seen=reasons[0], fix="send them again")
    problems += reasons
    response = ExportTraceServiceResponse()
    if problems:
        response.partial_success.rejected_spans = len(problems)
        response.partial_success.error_message = problems[0]
    return response


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
    for group in request.resource_spans:
        resource = attributes_of(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                try:
                    found = interaction_of(span, resource)
                except InputError as error:
                    yield error
                    continue
                if found is not None:
                    yield found


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
