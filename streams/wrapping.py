"""An application's own OpenAI client, with each chat completion recorded on the stream."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from functools import update_wrapper
from typing import Any, Protocol, TypeVar

from streams.completions import ChatCall, mapped
from streams.events import InteractionRecorded

RAW = "X-Stainless-Raw-Response"
"""The header by which the client's `with_raw_response` and `with_streaming_response` mark a call."""

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Recorder(Protocol):
    """What the wrapper needs of the emitter."""

    def emit(self, payload: InteractionRecorded) -> object:
        """Take an event; never blocks, never raises."""
        ...


def wrap_client(client: T, emitter: Recorder, application: str) -> T:
    """The same client; each `chat.completions.create` and `.parse` is recorded, also of its copies. Twice is once.

    Clients that wait and clients that are awaited alike. Streamed calls are recorded when they end: whole, cut by an
    error, or cancelled when closed or dropped before the end, or when the task that reads them is. Bodies read through
    `with_streaming_response` are the caller's alone and are not recorded.
    """
    it: Any = client
    completions = it.chat.completions
    for name in ("create", "parse"):
        call = getattr(completions, name)
        if not isinstance(call, RecordedCall):
            setattr(completions, name, RecordedCall(call, emitter, application))
    for name in ("copy", "with_options"):
        setattr(it, name, _copies(getattr(type(it), name).__get__(it), emitter, application))
    return client


class RecordedCall:
    """A method of the client that records what it is asked and what it answers. Recording never raises."""

    def __init__(self, call: Callable[..., Any], emitter: Recorder, application: str) -> None:
        self._call = call
        self._emitter = emitter
        self._application = application
        update_wrapper(self, call)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call; whatever the client raises is recorded and goes on to the caller."""
        messages = kwargs.get("messages")
        if isinstance(messages, Iterator):  # reading it here would leave nothing for the client
            kwargs["messages"] = list(messages)
        recording = Recording(kwargs, self._emitter, self._application)
        try:
            result = self._call(*args, **kwargs)
        except BaseException as error:
            recording.end(error)
            raise
        if isinstance(result, Awaitable):
            return self._awaited(result, recording, kwargs)
        recording.attach(result, kwargs)
        return result

    async def _awaited(self, result: Awaitable[Any], recording: Recording, request: Mapping[str, Any]) -> Any:
        try:
            answer = await result
        except BaseException as error:
            recording.end(error)
            raise
        recording.attach(answer, request)
        return answer


class Recording:
    """One call on its way to the stream; the first `end` counts."""

    def __init__(self, request: Mapping[str, Any], emitter: Recorder, application: str) -> None:
        self._emitter = emitter
        self._call: ChatCall | None = None
        try:
            self._call = ChatCall(request, application=application)
        except Exception as error:  # noqa: BLE001 - observation never breaks a call
            _not_recorded(error)

    def attach(self, result: Any, request: Mapping[str, Any]) -> None:
        """Record a whole result now, a stream when it ends."""
        raw = mapped(request.get("extra_headers")).get(RAW)
        if raw == "stream":
            return
        try:
            answer = result.parse() if raw else result  # what it parses it keeps: the caller gets the same object
            if request.get("stream") is True:
                listen(answer, self)
            else:
                self.hear(answer)
                self.end()
        except Exception as error:  # noqa: BLE001 - observation never breaks a call
            _not_recorded(error)

    def hear(self, body: Any) -> None:
        """Take a completion or a chunk."""
        try:
            if self._call is not None:
                self._call.hear(mapped(body))
        except Exception as error:  # noqa: BLE001 - observation never breaks a call
            _not_recorded(error)

    def end(self, error: BaseException | None = None, *, cancelled: bool = False) -> None:
        """Put it on the stream. An interrupt or a cancelled task cancels; any other exception is the call's error."""
        call, self._call = self._call, None
        if call is None:
            return
        stopped = cancelled or (error is not None and not isinstance(error, Exception))
        said = f"{type(error).__name__}: {error}" if error is not None else None
        try:
            self._emitter.emit(call.recorded(error=said, cancelled=stopped))
        except Exception as problem:  # noqa: BLE001 - observation never breaks a call
            _not_recorded(problem)


def listen(stream: Any, recording: Recording) -> None:
    """Hear the chunks of a stream of the client, which stays the object that it is."""
    chunks, close = stream._iterator, stream.close

    def closed() -> None:
        try:
            close()
        finally:
            recording.end(cancelled=True)

    async def closed_later() -> None:
        try:
            await close()
        finally:
            recording.end(cancelled=True)

    awaited = isinstance(chunks, AsyncIterator)
    stream._iterator = ListeningLater(chunks, recording) if awaited else Listening(chunks, recording)
    stream.close = closed_later if awaited else closed


class Listening:
    """The chunks of a stream as they pass; stands in the place of the stream's own iterator."""

    def __init__(self, chunks: Iterator[Any], recording: Recording) -> None:
        self._chunks = chunks
        self._recording = recording

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            chunk = next(self._chunks)
        except StopIteration:
            self._recording.end()
            raise
        except BaseException as error:
            self._recording.end(error)
            raise
        self._recording.hear(chunk)
        return chunk

    def __del__(self) -> None:
        self._recording.end(cancelled=True)


class ListeningLater:
    """`Listening` for a stream that is awaited."""

    def __init__(self, chunks: AsyncIterator[Any], recording: Recording) -> None:
        self._chunks = chunks
        self._recording = recording

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            self._recording.end()
            raise
        except BaseException as error:
            self._recording.end(error)
            raise
        self._recording.hear(chunk)
        return chunk

    def __del__(self) -> None:
        self._recording.end(cancelled=True)


def _copies(copy: Callable[..., Any], emitter: Recorder, application: str) -> Callable[..., Any]:
    return lambda *args, **kwargs: wrap_client(copy(*args, **kwargs), emitter, application)


def _not_recorded(error: Exception) -> None:
    # The text of the error may quote what was said, which is not masked: only its kind may be logged.
    _log.warning("a call was not recorded: %s", type(error).__name__)
