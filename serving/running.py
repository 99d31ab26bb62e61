"""`quill up`: bind, open, announce, serve, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from infra.errors import Conflict, InputError
from infra.settings import Settings
from serving.app import Rooms, app_of
from serving.presence import Presence, announce, running, withdraw

GRACE_SECONDS = 10
BACKLOG = 128


def serve(settings: Settings, *, features: bool, monitor: bool, intake: bool, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; `on_ready(url)` is called when requests are answered.

    Raises `Conflict` when the port is taken or a server of this installation runs already, and what opening the
    rooms raises. Whatever was recorded is flushed before this returns.
    """
    other = running(settings.home)
    if other is not None:
        raise Conflict(
            "a server of this installation runs already", seen=f"{other.url}, process {other.pid}", fix="stop it first"
        )
    with (
        _listening(settings.server.host, settings.server.port) as listener,
        Rooms(settings, features=features, monitor=monitor, intake=intake) as rooms,
    ):
        rooms.open()
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"

        def ready() -> None:
            announce(settings.home, Presence(pid=os.getpid(), url=url))
            on_ready(url)

        try:
            with _surviving_signals():
                _Server(_config(rooms), ready).run(sockets=[listener])
        finally:
            withdraw(settings.home)


class _Server(uvicorn.Server):
    """Says when it answers."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


def _config(rooms: Rooms) -> uvicorn.Config:
    return uvicorn.Config(
        app_of(rooms), log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=GRACE_SECONDS
    )


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except socket.gaierror as error:
            raise InputError("there is no such address", seen=host, fix="set server.host to 127.0.0.1") from error
        except OSError as error:
            raise Conflict(
                "the port cannot be bound",
                seen=f"{host}:{port}",
                rule=error.strerror or str(error),
                fix="quill up --port 0 picks a free one",
            ) from error
        yield listener


@contextmanager
def _surviving_signals() -> Iterator[None]:
    """uvicorn raises the signal that ended it once more when it is done; here that must not end the process,
    which still has an announcement to withdraw."""

    def passed(_number: int, _frame: Any) -> None:
        return

    before = {number: signal.signal(number, passed) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
