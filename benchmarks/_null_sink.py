"""An HTTP server on loopback that takes everything and keeps count: the null sink for clients that send traces."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class NullSink:
    """What arrived. Bodies are kept as they came and read only when the spans are counted, after the clock stopped."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[tuple[bytes, bool]] = []

    def spans(self) -> int:
        """Spans that arrived since the last call."""
        bodies, self.bodies = self.bodies, []
        return sum(_spans(gzip.decompress(body) if packed else body) for body, packed in bodies)


@contextmanager
def null_sink() -> Iterator[NullSink]:
    """A running sink."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    sink = NullSink(f"http://127.0.0.1:{server.server_port}")
    server.sink = sink  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield sink
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path.endswith("/v1/traces"):
            sink = self.server.sink  # type: ignore[attr-defined]
            sink.bodies.append((body, self.headers.get("content-encoding") == "gzip"))
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


def _spans(body: bytes) -> int:
    request = ExportTraceServiceRequest.FromString(body)
    return sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)
