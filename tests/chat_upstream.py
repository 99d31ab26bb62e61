"""An OpenAI-compatible endpoint in a thread, that answers as the request's `model` says: the other end of a real
connection, for what no real endpoint does on demand."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ID = "chatcmpl-0123456789abcdef0123"
WORDS = ("LoRA ", "trains ", "two matrices.")
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
TOOL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"what": "LoRA"}'}}


class ChatUpstream:
    """Models: `ok`, `length`, `tools`, `refuse` (429), `cut` (ends without a finish reason), `held` (waits for
    `release` after the first word), `asleep` (waits for it before its answer). Whole answers say `said`, `delay`
    seconds after the request."""

    def __init__(self, said: str = "".join(WORDS)) -> None:
        self.said = said
        self.delay = 0.0
        self.received: list[tuple[str, dict[str, str], bytes]] = []
        self.sent: list[bytes] = []
        self.release = threading.Event()
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.upstream = self
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    upstream: ChatUpstream


class Handler(BaseHTTPRequestHandler):
    """Answers one connection for the upstream that its server belongs to."""

    server: _Server

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.upstream.received.append(
            (self.path, {name.lower(): value for name, value in self.headers.items()}, b"")
        )
        self.whole(200, {"object": "list", "data": [{"id": "ok", "object": "model"}]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.upstream.received.append(
            (self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        )
        request = json.loads(body)
        if request["model"] == "refuse":
            self.whole(429, {"error": {"message": "slow down", "type": "rate_limit", "code": "rate"}})
        elif self.path.endswith("/embeddings"):
            data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
            self.whole(200, {"object": "list", "data": data, "model": request["model"], "usage": USAGE})
        elif request.get("stream"):
            self.streamed(events(request["model"], text=self.path.endswith("/v1/completions")), request["model"])
        else:
            if request["model"] == "asleep":
                self.server.upstream.release.wait(30)
            time.sleep(self.server.upstream.delay)
            text = self.path.endswith("/v1/completions")
            self.whole(200, completion(request["model"], self.server.upstream.said, text=text))

    def whole(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.server.upstream.sent.append(content)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Request-Id", "req_1")
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(content)

    def streamed(self, lines: list[bytes], model: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        if model == "asleep":
            self.wfile.flush()
            self.server.upstream.release.wait(30)
        for number, line in enumerate(lines):
            try:
                self.wfile.write(line)
                self.wfile.flush()
            except OSError:
                return
            self.server.upstream.sent.append(line)
            if model == "held" and number == 1:  # after the comment and the first word
                self.server.upstream.release.wait(30)


def completion(model: str, said: str, *, text: bool = False) -> dict[str, Any]:
    if text:
        whole = {"index": 0, "text": said, "finish_reason": "stop"}
        return {"id": ID, "object": "text_completion", "created": 1, "model": model, "choices": [whole], "usage": USAGE}
    message: dict[str, Any] = {"role": "assistant", "content": said}
    if model == "tools":
        message = {"role": "assistant", "content": None, "tool_calls": [TOOL]}
    reason = {"tools": "tool_calls", "length": "length"}.get(model, "stop")
    choice = {"index": 0, "message": message, "finish_reason": reason}
    return {"id": ID, "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": USAGE}


def events(model: str, *, text: bool = False) -> list[bytes]:
    if text:
        head = {"id": ID, "object": "text_completion", "created": 1, "model": model}
        pieces = [{"index": 0, "text": word, "finish_reason": None} for word in WORDS]
        pieces.append({"index": 0, "text": "", "finish_reason": "stop"})
        lines = [b"data: " + json.dumps({**head, "choices": [piece]}).encode() + b"\n\n" for piece in pieces]
        return [*lines, b"data: [DONE]\n\n"]
    head = {"id": ID, "object": "chat.completion.chunk", "created": 1, "model": model}
    deltas: list[dict[str, Any]] = [{"content": word} for word in WORDS]
    if model == "tools":
        function = TOOL["function"]
        first = {**TOOL, "index": 0, "function": {**function, "arguments": function["arguments"][:5]}}
        rest = {"index": 0, "function": {"arguments": function["arguments"][5:]}}
        deltas = [{"tool_calls": [first]}, {"tool_calls": [rest]}]
    chunks = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    if model != "cut":
        reason = {"tools": "tool_calls", "length": "length"}.get(model, "stop")
        chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        chunks.append({**head, "choices": [], "usage": USAGE})
    lines = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]
    return lines if model == "cut" else [b": a comment\n\n", *lines, b"data: [DONE]\n\n"]
