"""The OpenAI shapes over grounded, recorded answers: `/v1/chat/completions` and `/v1/models`.

Beside the fields of OpenAI, a completion carries `interaction_id`, `text` (with [n] markers), `citations`, `chunks`,
`release` and `latency_ms`. The release decides the decoding settings: `temperature` and the like are accepted
and have no effect, `max_tokens` can only lower the release's limit.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from infra.errors import InputError, NotFound, QuillError
from infra.identity import new_id
from infra.llm.chat import Message
from serving.faults import quill_error_object
from serving.relay import Relay, RelayedStream
from serving.surface import CHANNEL, MAX_QUESTION, Platform, written
from streams.protocols import Answer, AnswerRequest

if TYPE_CHECKING:
    from store.releases import Release


class TextPart(BaseModel):
    """A part of a message; only text can be read."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """The words, parts joined by line breaks."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    """What else to stream."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The fields of a chat completion request that have an effect here; others are passed over."""

    model: str = Field(CHANNEL, description="A release channel, or the model of a channel's release.")
    messages: Annotated[list[ChatMessage], Field(min_length=1, description="The last one is the question.")]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, description="Upper bound; the release's limit still holds.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of max_tokens.")
    n: Literal[1] = 1
    user: str = Field("", description="Names the conversation when metadata.conversation_id does not.")
    metadata: dict[str, str] | None = None

    @property
    def limit(self) -> int | None:
        """Most tokens asked for."""
        return self.max_completion_tokens or self.max_tokens


def router(platform: Platform) -> APIRouter:
    """The routes, answered by the platform."""
    routes = APIRouter(prefix="/v1", tags=["OpenAI-compatible"])

    @routes.get("/models", summary="The channels and the models of their releases")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(name, release) for name, release in _models(platform).items()]}

    @routes.post("/chat/completions", summary="Grounded text with checked citations, streamed or whole")
    async def chat_completions(body: ChatRequest) -> Response:
        relay: Relay[Answer] = Relay()
        channel = await relay.aside(lambda: channel_of(body.model, platform.channels()))
        request = to_answer_request(body, channel)
        if not body.stream:
            answer = await relay.aside(lambda: platform.answer(request))
            return JSONResponse(completion(answer, body))
        relay.start(lambda on_text: platform.answer(request, on_text))
        await relay.ready()
        return RelayedStream(relay, _events(relay, body, request.interaction_id))

    return routes


def channel_of(model: str, channels: Mapping[str, Release]) -> str:
    """The channel that a request's `model` names: itself, or the first whose release has that model.

    Raises `NotFound` listing what there is.
    """
    if model in channels:
        return model
    for channel, release in channels.items():
        if model == release.model:
            return channel
    names = dict.fromkeys([*channels, *(release.model for release in channels.values())])
    raise NotFound("no such model", seen=model, rule="one of " + ", ".join(names))


def to_answer_request(body: ChatRequest, channel: str) -> AnswerRequest:
    """What the answerer is asked. Raises `InputError` when the last message is not a user's with words in it."""
    last = body.messages[-1]
    question = last.text.strip()
    if last.role != "user" or not question:
        raise InputError("there is no question", seen=last.role, rule="the last message is the user's and has text")
    if len(question) > MAX_QUESTION:
        raise InputError("the question is too long", seen=f"{len(question)} characters", rule=f"at most {MAX_QUESTION}")
    earlier = tuple(
        Message(role="system" if one.role == "developer" else one.role, content=one.text) for one in body.messages[:-1]
    )
    return AnswerRequest(
        question=question,
        messages=earlier,
        conversation_id=(body.metadata or {}).get("conversation_id", "") or body.user,
        session_id=(body.metadata or {}).get("session_id", ""),
        interaction_id=new_id(),
        channel=channel,
        max_tokens=body.limit,
    )


def completion(answer: Answer, body: ChatRequest) -> dict[str, Any]:
    """A whole completion."""
    message = {"role": "assistant", "content": answer.text}
    return {
        "id": answer.interaction_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": answer.release.model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason(answer, body.limit)}],
        **_extras(answer),
        "usage": usage(answer),
    }


def finish_reason(answer: Answer, limit: int | None) -> Literal["stop", "length"]:
    """'length' when the answer used every token it was allowed."""
    allowed = min(answer.release.decoding.max_tokens, limit or answer.release.decoding.max_tokens)
    return "length" if answer.usage.output_tokens >= allowed else "stop"


def usage(answer: Answer) -> dict[str, int]:
    """Tokens under OpenAI's names."""
    read, wrote = answer.usage.input_tokens, answer.usage.output_tokens
    return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}


async def _events(relay: Relay[Answer], body: ChatRequest, interaction_id: str) -> AsyncIterator[bytes]:
    head = {"id": interaction_id, "object": "chat.completion.chunk", "created": int(time.time()), "model": body.model}
    wants_usage = body.stream_options is not None and body.stream_options.include_usage
    yield _event(head | _choice({"role": "assistant", "content": ""}))
    said = False
    try:
        async for piece in relay.pieces():
            said = True
            yield _event(head | _choice({"content": piece}))
        answer = relay.outcome()
    except QuillError as error:
        yield _event(quill_error_object(error))
        return
    head["model"] = answer.release.model
    if not said and answer.text:
        yield _event(head | _choice({"content": answer.text}))
    yield _event(head | _choice({}, finish_reason(answer, body.limit)) | _extras(answer))
    if wants_usage:
        yield _event(head | {"choices": [], "usage": usage(answer)})
    yield b"data: [DONE]\n\n"


def _extras(answer: Answer) -> dict[str, Any]:
    return written(answer).model_dump(mode="json")


def _choice(delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def _models(platform: Platform) -> dict[str, Release]:
    channels = platform.channels()
    return {**{release.model: release for release in channels.values()}, **channels}


def _model(name: str, release: Release) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "quillstream", "release": release.id}
