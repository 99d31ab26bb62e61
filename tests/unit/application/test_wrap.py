"""An application's OpenAI client, wrapped: the real client over a real connection, and what stands in the log."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

import openai
import pytest
from chat_upstream import ID, TOOL, WORDS

import quillstream
from streams.events import LLM_FEEDBACK, FeedbackGiven, InteractionRecorded

ASK = [{"role": "user", "content": "What does LoRA train?"}]
TEXT = "".join(WORDS)


pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def client(upstream) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=upstream.url, api_key="none", max_retries=0) as opened:
        assert quillstream.wrap(opened, application="blog") is opened
        yield opened


def ask(client, model: str = "ok", **fields):
    return client.chat.completions.create(model=model, messages=fields.pop("messages", ASK), **fields)


def test_a_completion_is_recorded_as_it_was(client, recorded):
    completion = ask(client, metadata={"conversation_id": "c1", "team": "web"})
    assert completion.choices[0].message.content == TEXT
    [one] = recorded()
    assert isinstance(one, InteractionRecorded)
    assert (one.interaction_id, one.conversation_id, one.application) == (ID, "c1", "blog")
    assert (one.prompt, one.response, one.finish_reason, one.error) == ("What does LoRA train?", TEXT, "stop", None)
    assert (one.usage.input_tokens, one.usage.output_tokens) == (7, 3)
    assert one.latency_ms > 0
    assert one.tags == {"team": "web", "model": "ok", "response_id": ID}


def test_a_stream_passes_unchanged_and_is_recorded_whole(client, recorded):
    stream = ask(client, "length", stream=True)
    assert isinstance(stream, openai.Stream)
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    [one] = recorded()
    assert (one.response, one.finish_reason, one.usage.output_tokens) == (TEXT, "length", 3)
    assert one.tags["stream"] == "true"


@pytest.mark.parametrize("leave", ["close", "exit", "drop"])
def test_a_stream_left_before_its_end_is_cancelled(client, upstream, recorded, leave):
    stream = ask(client, "held", stream=True)
    next(iter(stream))
    if leave == "close":
        stream.close()
    elif leave == "exit":
        with stream:
            pass
    del stream
    gc.collect()
    upstream.release.set()
    [one] = recorded()
    assert (one.response, one.finish_reason, one.error) == (WORDS[0], "cancelled", None)


def test_a_stream_that_breaks_off_is_an_error(client, recorded):
    assert len(list(ask(client, "cut", stream=True))) == len(WORDS)
    [one] = recorded()
    assert (one.response, one.finish_reason) == (TEXT, "error")
    assert "without a finish reason" in one.error


def test_what_the_client_raises_is_recorded_and_goes_on(client, upstream, recorded):
    with pytest.raises(openai.RateLimitError):
        ask(client, "refuse")
    upstream.close()
    with pytest.raises(openai.APIConnectionError):
        ask(client)
    first, second = recorded()
    assert (first.finish_reason, first.response) == ("error", "")
    assert first.error.startswith("RateLimitError: ")
    assert second.error.startswith("APIConnectionError: ")


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_are_kept_as_text(client, recorded, stream):
    earlier = [
        {"role": "developer", "content": "Be brief."},
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [TOOL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "a method"},
    ]
    answer = ask(client, "tools", messages=iter(earlier), stream=stream)
    if stream:
        list(answer)
    [one] = recorded()
    called = '[tool call] look_up({"what": "LoRA"})'
    assert (one.prompt, one.response, one.finish_reason) == (ASK[0]["content"], called, "stop")
    assert one.tags["finish_reason"] == "tool_calls"
    assert [(call.name, call.arguments) for call in one.tool_calls] == [("look_up", '{"what": "LoRA"}')]
    said = [(message.role, message.content) for message in one.messages]
    assert said == [("system", "Be brief."), ("assistant", called), ("tool", "a method")]


def test_copies_raw_responses_and_a_second_wrap_record_once_each(client, recorded):
    quillstream.wrap(client, application="blog")
    ask(client.with_options(timeout=9))
    raw = client.chat.completions.with_raw_response.create(model="ok", messages=ASK)
    assert raw.headers["x-request-id"] == "req_1"
    assert raw.parse().choices[0].message.content == TEXT
    assert [one.response for one in recorded()] == [TEXT, TEXT]


def test_recording_that_fails_breaks_no_call(client, monkeypatch, caplog):
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("secret words")

    monkeypatch.setattr("streams.emitter.Emitter.emit", broken)
    assert ask(client).choices
    assert len(list(ask(client, stream=True))) > len(WORDS)
    assert "ZeroDivisionError" in caplog.text
    assert "secret words" not in caplog.text


def test_short_response_ids_do_not_name_interactions(client, recorded, monkeypatch):
    monkeypatch.setattr("streams.completions.SHORTEST_ID", 99)
    ask(client)
    ask(client)
    ids = {one.interaction_id for one in recorded()}
    assert len(ids) == 2
    assert ID not in ids


def test_feedback_and_any_event_reach_the_stream(recorded):
    receipt = quillstream.feedback("i1", ratings={"relevance": 4}, reviewer="ann")
    assert receipt.wait(10)
    again = FeedbackGiven(interaction_id="i2", comment="good")
    time.sleep(0.001)
    assert quillstream.emit(again, "e2").wait(10)
    first, second = recorded(LLM_FEEDBACK)
    assert (first.ratings, first.reviewer) == ({"relevance": 4}, "ann")
    assert second == again


@pytest.mark.parametrize("ratings", [{"relevance": 6}, {"beauty": 3}])
def test_feedback_outside_the_contract_is_refused(ratings):
    with pytest.raises(quillstream.InputError):
        quillstream.feedback("i1", ratings=ratings)


def test_a_prompt_is_read_from_the_store(settings):
    from store.opening import open_store

    store = open_store(settings)
    store.prompts.push("hello", (quillstream.Message(role="user", content="Hello {{ name }}"),))
    store.close()
    assert quillstream.prompts.get("hello@1").render(name="Ann")[0].content == "Hello Ann"
    quillstream.prompts._opened.cache_clear()
