"""A real HTTP server on loopback whose pages a test sets, and which says what it was asked."""

from __future__ import annotations

import gzip
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256


@dataclass
class Site:
    """Path to page; the paths of requests in order, with the status that was given."""

    port: int = 0
    pages: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    failing: dict[str, int] = field(default_factory=dict)
    dripping: set[str] = field(default_factory=set)
    packed: dict[str, Callable[[], Iterator[bytes]]] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)
    etags: bool = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def put(self, path: str, body: str | bytes, kind: str = "text/html; charset=utf-8") -> str:
        self.pages[path] = (kind, body.encode() if isinstance(body, str) else body)
        return self.url + path

    def statuses(self, path: str) -> list[int]:
        return [status for asked, status in self.asked if asked == path]


class SiteServer(http.server.ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.site = Site(port=self.server_address[1])


class Handler(http.server.BaseHTTPRequestHandler):
    server: SiteServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        site = self.server.site
        if self.path in site.redirects:
            self.answer(302, b"", {"Location": site.redirects[self.path]})
        elif self.path in site.failing:
            self.answer(site.failing[self.path], b"no")
        elif self.path in site.packed:
            self.stream(site.packed[self.path](), {"Content-Encoding": "gzip"})
        elif self.path in site.dripping:
            self.stream(drip(), {})
        elif self.path in site.pages:
            self.page(*site.pages[self.path])
        else:
            self.answer(404, b"nothing here")

    def page(self, kind: str, body: bytes) -> None:
        etag = {"ETag": f'"{sha256(body).hexdigest()[:16]}"'} if self.server.site.etags else {}
        if etag and self.headers.get("If-None-Match") == etag["ETag"]:
            self.answer(304, b"", etag)
        else:
            self.answer(200, body, {"Content-Type": kind} | etag)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.server.site.asked.append((self.path, status))
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, chunks: Iterator[bytes], headers: dict[str, str]) -> None:
        self.close_connection = True
        self.send_response(200)
        for name, value in ({"Content-Type": "text/plain", "Connection": "close"} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):
            for chunk in chunks:
                self.wfile.write(chunk)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def serving() -> Iterator[Site]:
    with SiteServer() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.site
        server.shutdown()
        thread.join()


def drip() -> Iterator[bytes]:
    """A byte now and then, for a while."""
    for _ in range(100):
        yield b"x"
        time.sleep(0.05)


def bomb(megabytes: int) -> Callable[[], Iterator[bytes]]:
    """Gzip of so many megabytes of nothing, a thousandth of that on the wire."""
    return lambda: iter([gzip.compress(bytes(megabytes * 1_000_000))])
