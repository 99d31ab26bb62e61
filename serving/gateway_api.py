"""An application's own endpoint behind `/gateway/v1`: calls go through unchanged, completions are recorded.

The application changes its `base_url` and nothing else. What it sends and what comes back pass byte for byte; a stream
passes as it comes. Nothing waits for the recording. A recorded call's answer names its interaction in a header, so
that feedback can.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import Field, SecretStr
from starlette.types import Receive, Scope, Send

from infra.errors import SettingsError
from infra.identity import Value
from infra.settings import Settings
from serving.faults import error_object
from serving.surface import Platform
from streams.completions import ChatCall, mapped, plain

PREFIX = "/gateway/v1"
RECORDED = frozenset({"chat/completions", "completions"})
APPLICATION_HEADER = "x-quillstream-application"
CONVERSATION_HEADER = "x-quillstream-conversation-id"
SESSION_HEADER = "x-quillstream-session-id"
INTERACTION_HEADER = "x-quillstream-interaction-id"
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
CONNECT_SECONDS = 10.0
NAMING_SECONDS = 1.0
"""How long a stream's headers wait for its first event, whose id names the interaction; after that it has our id."""
NOT_FORWARDED = frozenset(
    "connection host content-length keep-alive proxy-authenticate proxy-authorization te trailer transfer-encoding "
    f"upgrade accept-encoding {APPLICATION_HEADER} {CONVERSATION_HEADER} {SESSION_HEADER}".split()
)
"""Headers of one hop (RFC 9110, section 7.6.1). `accept-encoding` goes too: what is recorded must be read here."""
NOT_RETURNED = NOT_FORWARDED - {"content-length"} | {INTERACTION_HEADER}


class Upstream(Value):
    """Where calls are forwarded."""

    base_url: str = Field(description="OpenAI-compatible base URL without a final slash; empty means none is set.")
    api_key: SecretStr = Field(description="Sent as Authorization; empty means the caller's own.")
    timeout: float = Field(description="Seconds without a byte before a call is given up.")


def upstream_of(settings: Settings) -> Upstream:
    """The upstream that the settings name. The writer's key goes to the writer's endpoint only."""
    gateway = settings.gateway
    base_url = gateway.base_url or settings.llm.endpoint
    api_key = gateway.api_key if gateway.base_url or gateway.api_key.get_secret_value() else settings.llm.api_key
    return Upstream(base_url=base_url.rstrip("/"), api_key=api_key, timeout=gateway.timeout)


def router(platform: Platform, upstream: Upstream) -> APIRouter:
    """The routes; the connection to the upstream is opened at the first call and closed with the app."""
    gateway = Gateway(platform, upstream)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await gateway.close()

    routes = APIRouter(tags=["Gateway"], lifespan=lifespan)
    routes.add_api_route(
        PREFIX + "/{path:path}", gateway.forward, methods=METHODS, include_in_schema=False, response_model=None
    )
    return routes


class Gateway:
    """Forwards to one upstream and records what it sees of chat and text completions."""

    def __init__(self, platform: Platform, upstream: Upstream) -> None:
        self._platform = platform
        self._upstream = upstream
        self._client: httpx.AsyncClient | None = None

    async def forward(self, path: str, request: Request) -> Response:
        """Send the request on and its answer back; 502 as an OpenAI error object when the upstream does not answer.

        Raises `SettingsError` when no upstream is set.
        """
        if not self._upstream.base_url:
            raise SettingsError("the gateway has no endpoint to forward to", fix="set gateway.base_url")
        body = await request.body()
        recording = self._recording(path, request, body)
        try:
            answer = await self._send(path, request, body)
            if answer.headers.get("content-type", "").startswith("text/event-stream"):
                return await PassedOn(answer, recording).named()
            content = b"".join([piece async for piece in answer.aiter_raw()])
            await answer.aclose()
        except httpx.HTTPError as error:
            recording.end(error=f"{type(error).__name__}: {error}")
            message = f"the upstream does not answer; seen: {self._upstream.base_url}: {type(error).__name__}: {error}"
            return JSONResponse(error_object(message, 502, code="upstream_unavailable"), 502, recording.headers)
        recording.whole(answer.status_code, content)
        return _returned(Response(content, answer.status_code), answer, recording)

    async def close(self) -> None:
        """Close the connections to the upstream."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _send(self, path: str, request: Request, body: bytes) -> httpx.Response:
        if self._client is None:
            timeout = httpx.Timeout(self._upstream.timeout, connect=CONNECT_SECONDS)
            self._client = httpx.AsyncClient(timeout=timeout)
        headers = [(name, value) for name, value in request.headers.items() if name not in NOT_FORWARDED]
        headers.append(("accept-encoding", "identity"))
        key = self._upstream.api_key.get_secret_value()
        if key:
            headers = [(name, value) for name, value in headers if name != "authorization"]
            headers.append(("authorization", f"Bearer {key}"))
        query = f"?{request.url.query}" if request.url.query else ""
        url = f"{self._upstream.base_url}/{path}{query}"
        outgoing = self._client.build_request(request.method, url, headers=headers, content=body)
        return await self._client.send(outgoing, stream=True)

    def _recording(self, path: str, request: Request, body: bytes) -> Recording:
        if request.method != "POST" or path.strip("/") not in RECORDED:
            return Recording(self._platform, None)
        call = ChatCall(
            _object(body),
            application=request.headers.get(APPLICATION_HEADER, "application"),
            conversation=request.headers.get(CONVERSATION_HEADER, ""),
            session=request.headers.get(SESSION_HEADER, ""),
        )
        return Recording(self._platform, call)


class Recording:
    """What is seen of one call on its way to the stream; the first `end` counts. Without a call it does nothing."""

    def __init__(self, platform: Platform, call: ChatCall | None) -> None:
        self._platform = platform
        self._call = call
        self._named = call
        self._rest = b""

    @property
    def waits_for_a_name(self) -> bool:
        """It goes on and the endpoint has said no id yet."""
        return self._call is not None and not self._call.named

    @property
    def headers(self) -> dict[str, str]:
        """What tells the caller under which id it is recorded."""
        return {INTERACTION_HEADER: _in_a_header(self._named.interaction_id)} if self._named else {}

    def whole(self, status: int, content: bytes) -> None:
        """A complete answer, or an error of the upstream."""
        if self._call is None:
            return
        body = _object(content)
        if status >= 400:
            said = plain(mapped(body.get("error")).get("message")) or content[:200].decode("utf-8", "replace")
            self.end(error=f"HTTP {status}: {said}")
            return
        self._call.hear(body)
        self.end()

    def piece(self, content: bytes) -> str:
        """Bytes of a stream as they came; the error that they carry, if any."""
        if self._call is None:
            return ""
        *lines, self._rest = (self._rest + content).split(b"\n")
        problem = ""
        for line in lines:
            if line.startswith(b"data:"):
                event = _object(line.removeprefix(b"data:"))
                self._call.hear(event)
                problem = problem or plain(mapped(event.get("error")).get("message"))
        return problem

    def end(self, *, error: str | None = None, cancelled: bool = False) -> None:
        """Put it on the stream."""
        call, self._call = self._call, None
        if call is not None:
            self._platform.emit(call.recorded(error=error, cancelled=cancelled))


class PassedOn(StreamingResponse):
    """A stream of the upstream, passed on as it comes; a client that goes ends it upstream too."""

    def __init__(self, answer: httpx.Response, recording: Recording) -> None:
        super().__init__(self._pieces(), answer.status_code)
        self._answer = answer
        self._recording = recording
        self._held: list[bytes] = []
        self._heard = self._listen()
        self._next: asyncio.Task[bytes | None] | None = None

    async def named(self) -> PassedOn:
        """Itself, once its headers name the interaction: by the first event's id, or by ours when that is late."""
        deadline = asyncio.get_running_loop().time() + NAMING_SECONDS
        while self._recording.waits_for_a_name:
            self._next = asyncio.ensure_future(anext(self._heard, None))
            left = deadline - asyncio.get_running_loop().time()
            await asyncio.wait({self._next}, timeout=max(0.0, left))
            if not self._next.done() or (piece := self._next.result()) is None:
                break
            self._held.append(piece)
            self._next = None
        _returned(self, self._answer, self._recording)
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end or until the client is gone, which is recorded as cancelled."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._recording.end(cancelled=True)
            if self._next is not None:
                self._next.cancel()
            await self._answer.aclose()

    async def _pieces(self) -> AsyncIterator[bytes]:
        for piece in self._held:
            yield piece
        if self._next is not None and (late := await self._next) is not None:
            yield late
        async for piece in self._heard:
            yield piece

    async def _listen(self) -> AsyncIterator[bytes]:
        problem = ""
        try:
            async for piece in self._answer.aiter_raw():
                problem = self._recording.piece(piece) or problem
                yield piece
        except httpx.HTTPError as error:
            problem = f"{type(error).__name__}: {error}"
            said = error_object(f"the upstream broke off; seen: {problem}", 502, code="upstream_unavailable")
            yield b"data: " + json.dumps(said).encode() + b"\n\n"
        self._recording.end(error=problem or None)


def _returned(response: Response, answer: httpx.Response, recording: Recording) -> Response:
    kept = [(name.lower(), value) for name, value in answer.headers.raw if name.lower().decode() not in NOT_RETURNED]
    if not any(name == b"content-length" for name, _ in kept):
        kept += [(name, value) for name, value in response.raw_headers if name == b"content-length"]
    response.raw_headers = kept + [(name.encode(), value.encode()) for name, value in recording.headers.items()]
    return response


def _in_a_header(text: str) -> str:
    """An id as a header takes it: visible ASCII (RFC 9110, section 5.5), the rest percent-encoded."""
    return quote(text, safe="".join(map(chr, range(0x21, 0x7F))).replace("%", ""))


def _object(content: bytes) -> Mapping[str, Any]:
    try:
        return mapped(json.loads(content))
    except ValueError:
        return {}
