"""An application's AsyncOpenAI client, wrapped: awaited, streamed, left and cancelled calls are recorded as such."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest
from chat_upstream import ID, TOOL, WORDS

import quillstream

pytestmark = pytest.mark.usefixtures("home")

ASK = [{"role": "user", "content": "What does LoRA train?"}]
TEXT = "".join(WORDS)
Use = Callable[[openai.AsyncOpenAI], Awaitable[Any]]


@pytest.fixture
def with_client(upstream) -> Callable[[Use], Any]:
    """Run a coroutine with a wrapped client."""

    async def opened(use: Use) -> Any:
        async with openai.AsyncOpenAI(base_url=upstream.url, api_key="none", max_retries=0) as client:
            assert quillstream.wrap(quillstream.wrap(client, application="blog")) is client
            return await use(client)

    return lambda use: asyncio.run(opened(use))


def ask(client: openai.AsyncOpenAI, model: str = "ok", **fields) -> Any:
    return client.chat.completions.create(model=model, messages=ASK, **fields)


def test_a_completion_is_recorded_as_it_was(with_client, recorded):
    completion = with_client(lambda client: ask(client, metadata={"conversation_id": "c1", "session_id": "s1"}))
    assert completion.choices[0].message.content == TEXT
    [one] = recorded()
    assert (one.interaction_id, one.conversation_id, one.session_id, one.application) == (ID, "c1", "s1", "blog")
    assert (one.prompt, one.response, one.finish_reason, one.error) == (ASK[0]["content"], TEXT, "stop", None)
    assert one.usage.output_tokens == 3
    assert one.latency_ms > 0


def test_a_stream_passes_unchanged_and_is_recorded_whole(with_client, recorded):
    async def read(client):
        stream = await ask(client, "length", stream=True)
        assert isinstance(stream, openai.AsyncStream)
        return [chunk async for chunk in stream]

    chunks = with_client(read)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    [one] = recorded()
    assert (one.response, one.finish_reason, one.tags["stream"]) == (TEXT, "length", "true")


@pytest.mark.parametrize("leave", ["close", "exit", "drop"])
def test_a_stream_left_before_its_end_is_cancelled(with_client, recorded, leave):
    async def read(client):
        stream = await ask(client, "held", stream=True)
        await anext(stream)
        if leave == "close":
            await stream.close()
        elif leave == "exit":
            async with stream:
                pass
        del stream
        gc.collect()

    with_client(read)
    [one] = recorded()
    assert (one.response, one.finish_reason, one.error) == (WORDS[0], "cancelled", None)


@pytest.mark.parametrize("stream", [False, True])
def test_a_cancelled_task_cancels_its_call(with_client, upstream, recorded, stream):
    async def read(client):
        heard = asyncio.Event()

        async def call():
            if not stream:
                await ask(client, "asleep")
            async for _ in await ask(client, "held", stream=True):
                heard.set()

        task = asyncio.create_task(call())
        while not (heard.is_set() if stream else upstream.received):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with_client(read)
    [one] = recorded()
    assert (one.response, one.finish_reason, one.error) == (WORDS[0] if stream else "", "cancelled", None)


def test_errors_and_broken_streams_are_recorded_and_go_on(with_client, recorded):
    async def calls(client):
        with pytest.raises(openai.RateLimitError):
            await ask(client, "refuse")
        assert len([chunk async for chunk in await ask(client, "cut", stream=True)]) == len(WORDS)

    with_client(calls)
    refused, cut = recorded()
    assert (refused.finish_reason, refused.response) == ("error", "")
    assert refused.error.startswith("RateLimitError: ")
    assert (cut.finish_reason, cut.response) == ("error", TEXT)


def test_tool_calls_copies_and_raw_responses_are_recorded_once_each(with_client, recorded):
    async def calls(client):
        await ask(client.with_options(timeout=9), "tools")
        raw = await client.chat.completions.with_raw_response.create(model="ok", messages=ASK)
        return raw.parse()

    assert with_client(calls).choices[0].message.content == TEXT
    called, said = recorded()
    assert [(call.name, call.arguments) for call in called.tool_calls] == [("look_up", TOOL["function"]["arguments"])]
    assert (said.response, said.tool_calls) == (TEXT, ())


def test_recording_that_fails_breaks_no_call(with_client, monkeypatch, caplog):
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("secret words")

    async def calls(client):
        assert (await ask(client)).choices
        assert len([chunk async for chunk in await ask(client, stream=True)]) > len(WORDS)

    monkeypatch.setattr("streams.emitter.Emitter.emit", broken)
    with_client(calls)
    assert "ZeroDivisionError" in caplog.text
    assert "secret words" not in caplog.text
