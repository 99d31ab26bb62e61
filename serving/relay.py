"""From a thread that writes to an event loop that sends: pieces of text, then the outcome.

Whoever writes is told that the client has gone by an exception out of its `on_text`; so an answer nobody waits
for stops at its next piece, and is recorded as cancelled by the answerer.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
S = TypeVar("S")


class ClientGone(Exception):
    """The client closed the connection while text was being written for it."""


class Relay(Generic[T]):
    """One answer in the making. Made and read inside the event loop; written to from one thread."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self._gone = threading.Event()
        self._first: str | None = None
        self._future: asyncio.Future[T] | None = None

    async def aside(self, work: Callable[[], S]) -> S:
        """Run blocking work in a thread."""
        return await asyncio.get_running_loop().run_in_executor(None, work)

    def start(self, work: Callable[[Callable[[str], None]], T]) -> None:
        """Run `work(on_text)` in a thread; what it passes to `on_text` comes out of `pieces()`."""
        loop = asyncio.get_running_loop()

        def on_text(piece: str) -> None:
            if self._gone.is_set():
                raise ClientGone("nobody waits for this text any more")
            loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

        self._future = loop.run_in_executor(None, work, on_text)
        self._future.add_done_callback(self._done)

    async def ready(self) -> None:
        """Wait for the first piece or the end; an error before the first piece is raised here, while the
        response can still have the status of an error."""
        self._first = await self._pieces.get()
        if self._first is None:
            self.outcome()

    async def pieces(self) -> AsyncIterator[str]:
        """The pieces in order, until the work ends, well or not."""
        piece = self._first
        while piece is not None:
            yield piece
            piece = await self._pieces.get()

    def outcome(self) -> T:
        """What the work returned, once `pieces()` has ended; raises what it raised."""
        assert self._future is not None
        return self._future.result()

    def abandon(self) -> None:
        """The client is gone: the writer is told at its next piece."""
        self._gone.set()

    def _done(self, future: asyncio.Future[T]) -> None:
        self._pieces.put_nowait(None)
        if not future.cancelled():
            future.exception()  # seen: asyncio would log "never retrieved" for a client that has gone


class RelayedStream(StreamingResponse):
    """Server-sent events out of a relay; a broken connection abandons it."""

    def __init__(self, relay: Relay[T], events: AsyncIterator[bytes]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._relay = relay

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end or until the client is gone."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._relay.abandon()
