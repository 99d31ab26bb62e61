"""Errors as OpenAI error objects: what a client of `/v1` reads when something is wrong."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.errors import Conflict, CorruptArtifact, InputError, NotFound, QuillError, SettingsError, Unavailable

MAX_BODY = 1_000_000
LARGER = {"/gateway/": 32_000_000, "/v1/traces": 16_000_000}
"""Paths that may carry more: images on their way to an endpoint, batches of spans."""
STATUS = {InputError: 400, NotFound: 404, Conflict: 409, SettingsError: 503, Unavailable: 503, CorruptArtifact: 503}


def status_of(error: QuillError) -> int:
    """The HTTP status of an error; 503 for what an operator must mend, 400 for an unlisted kind."""
    return next((status for kind, status in STATUS.items() if isinstance(error, kind)), 400)


def error_object(message: str, status: int, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}` as OpenAI clients expect it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def quill_error_object(error: QuillError) -> dict[str, Any]:
    """The error object of a `QuillError`; its class name in snake case is the code."""
    name = type(error).__name__
    code = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
    return error_object(str(error), status_of(error), code=code)


def install(app: FastAPI) -> None:
    """Make the app answer every error with an error object and refuse bodies above `limit_of` their path."""
    app.add_exception_handler(QuillError, _quill)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_middleware(BodyLimit)


class BodyLimit:
    """Refuses a request body above `limit_of` its path with 413, by its announced length or while it arrives."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = limit_of(scope["path"])
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > limit:
            await _too_large(limit)(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise HTTPException(413, _too_large_text(limit))
            return message

        await self.app(scope, counted, send)


def limit_of(path: str) -> int:
    """The most bytes that a request body to this path may have."""
    return next((limit for prefix, limit in LARGER.items() if path.startswith(prefix)), MAX_BODY)


def _too_large_text(limit: int) -> str:
    return f"the request body is too large; rule: at most {limit} bytes"


def _too_large(limit: int) -> JSONResponse:
    return JSONResponse(error_object(_too_large_text(limit), 413, code="too_large"), 413)


async def _quill(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, QuillError)
    return JSONResponse(quill_error_object(error), status_of(error))


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # Of the alternatives of a union, the one that got deepest is what the client meant.
    first = max(error.errors(), key=lambda one: len(one["loc"]))
    param = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
    message = f"{param or 'the request'} is not valid; rule: {first['msg']}"
    return JSONResponse(error_object(message, 422, code="validation", param=param or None), 422)


async def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse(error_object(str(error.detail), error.status_code), error.status_code)
