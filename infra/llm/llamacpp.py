"""The llama.cpp process: one per machine and user, shared by every command; `infra.llm.local` starts and asks it.

A control endpoint on loopback loads each (model, adapter) once, as its own OpenAI-compatible llama.cpp server with
continuous batching, and answers with its address. Models that nobody used for a while are unloaded; a process that
nobody used for longer ends. Everything it is told arrives through arguments. Every port asks for the token in
`server.json`, which only the user can read, so neither other users nor web pages can use the models.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import sys
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

from infra.artifacts import write_atomic

REGISTRY = "server.json"
LOG = "server.log"
CONTEXT_TOKENS = 4096
SLOTS = 2
PROMPT_CACHE_MIB = 128
MAX_LOADED = 3
"""A writer, a small writer and its adapter; the 1.5B takes 1.8 GB, the 0.5B 0.8 GB each time it is loaded."""

BUSY_SECONDS = 10.0
"""A model used more recently than this is never unloaded to make room."""

SWEEP_SECONDS = 2.0


class CannotLoad(Exception):
    """llama.cpp refused a file; the text is its own reason, from the log."""


class LoadedModel:
    """One model with its adapter, listening on its own port."""

    def __init__(self, model: str, adapter: str | None, token: str) -> None:
        import xllamacpp

        self.model, self.adapter = model, adapter
        self.used = time.monotonic()
        self.seconds_to_load = 0.0
        self._counters = ""
        params = _parameters(model, adapter, token)
        started = time.monotonic()
        self._server: Any = xllamacpp.Server(params)
        self.seconds_to_load = time.monotonic() - started
        self.base_url = f"{self._server.listening_address}/v1"

    def note_use(self, now: float) -> None:
        """Move the time of last use when llama.cpp's counters moved or a request is running."""
        counters: str = self._server.handle_metrics()
        if counters != self._counters or "requests_processing 0\n" not in counters:
            self.used = now
        self._counters = counters

    def is_orphan(self) -> bool:
        """Whether its adapter file is gone: an adapter on trial, which nobody will ask for again."""
        return self.adapter is not None and not Path(self.adapter).exists()

    def close(self) -> None:
        """Unload: llama.cpp frees the weights when the last reference goes."""
        self._server = None


def _parameters(model: str, adapter: str | None, token: str) -> Any:
    """Settings of a llama.cpp server: loopback, any free port, no web page, `SLOTS` requests of `CONTEXT_TOKENS`."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {Path(model).stem}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [token]
    params.n_parallel = SLOTS
    params.n_ctx = CONTEXT_TOKENS * SLOTS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
    params.cache_prompt = True
    params.cache_ram_mib = PROMPT_CACHE_MIB
    params.warmup = False
    params.ui = False
    params.offline = True
    params.endpoint_metrics = True
    if adapter:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    return params


class Pool:
    """The loaded models. Loading is serialised: two loads at once would only compete for the same disk and cores."""

    def __init__(self, token: str, log: Path) -> None:
        self._token = token
        self._log = log
        self._lock = threading.Lock()
        self._loaded: dict[tuple[str, ...], LoadedModel] = {}
        self._asked = time.monotonic()
        self.closed = False

    def ensure(self, model: str, adapter: str | None) -> str:
        """The base URL of a model, loaded when it is not. Raises `CannotLoad`."""
        key = (_stamp(model), _stamp(adapter) if adapter else "")
        with self._lock:
            if self.closed:
                raise ConnectionAbortedError("this server is ending")
            loaded = self._loaded.get(key)
            if loaded is None:
                self._make_room()
                loaded = self._loaded[key] = self._load(model, adapter)
            self._asked = loaded.used = time.monotonic()
            return loaded.base_url

    def sweep(self, unload_after: float, exit_after: float) -> None:
        """Unload what was not used for `unload_after` seconds; close when nothing was used for `exit_after`."""
        now = time.monotonic()
        for loaded in list(self._loaded.values()):
            loaded.note_use(now)  # waits for a running batch, so not under the lock that `ensure` needs
        with self._lock:
            self._asked = max([self._asked, *(loaded.used for loaded in self._loaded.values())])
            for key, loaded in list(self._loaded.items()):
                allowed = BUSY_SECONDS if loaded.is_orphan() else unload_after
                if now - loaded.used > allowed:
                    self._loaded.pop(key).close()
            self.closed = self.closed or now - self._asked > exit_after

    def close(self) -> None:
        """Refuse further requests and unload everything."""
        with self._lock:
            self.closed = True
            while self._loaded:
                self._loaded.popitem()[1].close()

    def status(self) -> dict[str, Any]:
        """What is loaded, how long ago it was used (seconds), and the memory of the process (bytes)."""
        now = time.monotonic()
        models = [
            {
                "model": loaded.model,
                "adapter": loaded.adapter,
                "base_url": loaded.base_url,
                "seconds_to_load": round(loaded.seconds_to_load, 2),
                "idle_seconds": round(now - loaded.used, 1),
            }
            for loaded in list(self._loaded.values())
        ]
        return {"pid": os.getpid(), "memory_bytes": psutil.Process().memory_info().rss, "models": models}

    def _make_room(self) -> None:
        now = time.monotonic()
        idle = [key for key, loaded in self._loaded.items() if now - loaded.used > BUSY_SECONDS]
        idle.sort(key=lambda key: self._loaded[key].used)
        for key in idle[: max(len(self._loaded) - MAX_LOADED + 1, 0)]:
            self._loaded.pop(key).close()

    def _load(self, model: str, adapter: str | None) -> LoadedModel:
        before = self._log.stat().st_size
        try:
            return LoadedModel(model, adapter, self._token)
        except RuntimeError as error:
            with self._log.open("rb") as log:
                log.seek(before)
                raise CannotLoad(_reason(log.read().decode(errors="replace")) or str(error)) from error


def _stamp(file: str) -> str:
    status = Path(file).stat()
    return f"{file}:{status.st_size}:{status.st_mtime_ns}"


def _reason(log: str) -> str:
    """The first errors that llama.cpp logged (its line: time, level E, component, text)."""
    errors = [line.split(" E ", 1)[1].strip() for line in log.splitlines() if " E " in line]
    return "; ".join(errors[:2])


class Control(ThreadingHTTPServer):
    """The control endpoint on loopback: GET /status, POST /ensure {model, adapter}."""

    daemon_threads = True

    def __init__(self, pool: Pool, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pool = pool
        self.token = token


class _Handler(BaseHTTPRequestHandler):
    server: Control

    def do_GET(self) -> None:
        self._answer(*(self._refusal() or (200, self.server.pool.status())))

    def do_POST(self) -> None:
        self._answer(*(self._refusal() or self._ensure()))

    def _refusal(self) -> tuple[int, dict[str, Any]] | None:
        given = self.headers.get("Authorization", "")
        if secrets.compare_digest(given.encode(), f"Bearer {self.server.token}".encode()):
            return None
        return 401, {"error": "wrong token"}

    def _ensure(self) -> tuple[int, dict[str, Any]]:
        try:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))))
            return 200, {"base_url": self.server.pool.ensure(body["model"], body.get("adapter"))}
        except (CannotLoad, OSError) as error:
            status = 503 if isinstance(error, ConnectionAbortedError) else 422
            return status, {"error": str(error)}

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name is http.server's)
        """Polls are not worth a log line; llama.cpp logs its own requests."""


def serve(directory: Path, unload_after: float, exit_after: float) -> None:
    """Register in `directory`, answer until idle for `exit_after` seconds or told to end, then unregister."""
    token = secrets.token_urlsafe(24)
    pool = Pool(token, directory / LOG)
    control = Control(pool, token)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    threading.Thread(target=control.serve_forever, daemon=True).start()
    registry = directory / REGISTRY
    entry = {"pid": os.getpid(), "port": control.server_address[1], "token": token}
    write_atomic(registry, json.dumps(entry | {"started_at": datetime.now(UTC).isoformat()}).encode())
    while not pool.closed and not ended.wait(SWEEP_SECONDS):
        pool.sweep(unload_after, exit_after)
    if _is_ours(registry):
        registry.unlink()
    pool.close()


def _is_ours(registry: Path) -> bool:
    try:
        return bool(json.loads(registry.read_bytes())["pid"] == os.getpid())
    except (OSError, ValueError, KeyError):
        return False


def main(arguments: list[str] | None = None) -> None:
    """Fork away from whoever asked (so that its end, its terminal and its signals do not reach us) and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--unload-after", type=float, required=True, help="seconds")
    parser.add_argument("--exit-after", type=float, required=True, help="seconds")
    given = parser.parse_args(arguments)
    if os.fork():
        os._exit(0)
    os.umask(0o077)
    serve(given.directory, given.unload_after, given.exit_after)
    sys.stderr.flush()
    os._exit(0)  # llama.cpp's threads need no farewell, and a hung one must not keep the process


if __name__ == "__main__":
    main()
