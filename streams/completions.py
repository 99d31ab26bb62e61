"""A chat or text completion in OpenAI's form, seen from outside, as the interaction that is recorded.

The bodies come from applications and endpoints that we do not control: nothing here raises for a shape that it does
not know; what cannot be read is left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel

from infra.identity import new_id
from infra.llm.chat import Message
from streams.events import InteractionRecorded, ToolCall, Usage

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "refused", "cancelled", "error"]

SHORTEST_ID = 24
"""Response ids below this many characters are counters or small random numbers (Ollama: `chatcmpl-0` to `-999`): two
interactions would share one, and the store keeps the first only."""
ROLES: dict[str, Role] = {"system": "system", "developer": "system", "assistant": "assistant", "tool": "tool"}
FINISHED: dict[str, FinishReason] = {"length": "length", "max_tokens": "length", "content_filter": "refused"}
CUT = "the stream ended without a finish reason"


class ChatCall:
    """One completion while it is under way. `request` is read at once; later changes to it are not seen.

    `conversation` and `session` name them where the request's metadata (`conversation_id`, `session_id`) does not.
    """

    def __init__(
        self, request: Mapping[str, Any], *, application: str, conversation: str = "", session: str = ""
    ) -> None:
        self._application = application
        self._started = self._heard = time.perf_counter()
        messages = [message_of(raw) for raw in listed(request.get("messages"))] or asked_of(request.get("prompt"))
        asked = max((place for place, one in enumerate(messages) if one.role == "user"), default=len(messages) - 1)
        self._prompt = messages[asked].content if messages else ""
        self._messages = tuple(one for place, one in enumerate(messages) if place != asked)
        self._tags = {name: plain(value) for name, value in mapped(request.get("metadata")).items() if plain(value)}
        self._conversation = self._tags.pop("conversation_id", "") or conversation or plain(request.get("user"))
        self._session = self._tags.pop("session_id", "") or session
        self._tags |= {"stream": "true"} if request.get("stream") is True else {}
        self._model = plain(request.get("model"))
        self._id = ""
        self._name = ""
        self._usage = Usage()
        self._finish = ""
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._tools: dict[int, tuple[str, str]] = {}
        self._choices = {0}

    def hear(self, body: Mapping[str, Any]) -> None:
        """Take a whole completion, or one chunk of a streamed one."""
        self._heard = time.perf_counter()
        self._id = self._id or plain(body.get("id"))
        self._model = plain(body.get("model")) or self._model
        usage = mapped(body.get("usage"))
        if usage:
            read, wrote = usage.get("prompt_tokens"), usage.get("completion_tokens")
            self._usage = Usage(input_tokens=counted(read), output_tokens=counted(wrote))
        for choice in map(mapped, listed(body.get("choices"))):
            index = counted(choice.get("index"))
            self._choices.add(index)
            if index == 0:
                self._listen(choice)

    @property
    def named(self) -> bool:
        """The endpoint has said an id, so `interaction_id` need not be one of ours."""
        return bool(self._id)

    @property
    def interaction_id(self) -> str:
        """The id under which it is recorded: the endpoint's where that is long enough, else one of ours. The first
        look settles it."""
        self._name = self._name or (self._id if len(self._id) >= SHORTEST_ID else new_id())
        return self._name

    def recorded(self, *, error: str | None = None, cancelled: bool = False) -> InteractionRecorded:
        """The interaction as it ended. A call that ended neither well nor with `error` nor `cancelled` was cut."""
        if not (error or cancelled or self._finish):
            error = CUT
        if error or cancelled:
            self._heard = time.perf_counter()
        return InteractionRecorded(
            interaction_id=self.interaction_id,
            conversation_id=self._conversation or self.interaction_id,
            session_id=self._session or None,
            application=self._application,
            prompt=self._prompt,
            messages=self._messages,
            response=self._response(),
            finish_reason="cancelled" if cancelled else "error" if error else self._ended(),
            error=plain(error) if error and not cancelled else None,
            tool_calls=tuple(ToolCall(name=name, arguments=arguments) for name, arguments in self._called()),
            usage=self._usage,
            latency_ms=(self._heard - self._started) * 1000,
            tags=self._tags | self._facts(),
        )

    def _listen(self, choice: Mapping[str, Any]) -> None:
        said = mapped(choice.get("message")) or mapped(choice.get("delta"))
        self._text.append(content_text(said.get("content")) or plain(choice.get("text")))
        self._refusal.append(plain(said.get("refusal")))
        for place, call in enumerate(map(mapped, listed(said.get("tool_calls")))):
            index = counted(call.get("index")) if "index" in call else place
            function = mapped(call.get("function"))
            name, arguments = self._tools.get(index, ("", ""))
            self._tools[index] = (name + plain(function.get("name")), arguments + plain(function.get("arguments")))
        self._finish = plain(choice.get("finish_reason")) or self._finish

    def _called(self) -> list[tuple[str, str]]:
        return [self._tools[index] for index in sorted(self._tools)]

    def _response(self) -> str:
        calls = [tool_call_text(name, arguments) for name, arguments in self._called()]
        return "\n".join(part for part in ("".join(self._text), "".join(self._refusal), *calls) if part)

    def _ended(self) -> FinishReason:
        return "refused" if any(self._refusal) else finish_of(self._finish)

    def _facts(self) -> dict[str, str]:
        # What the contract has no field for.
        facts = {"model": self._model, "response_id": self._id}
        if self._finish not in {"stop", "length"}:
            facts["finish_reason"] = self._finish
        if len(self._choices) > 1:
            facts["choices"] = str(len(self._choices))
        return {name: value for name, value in facts.items() if value}


def finish_of(reason: str) -> FinishReason:
    """A provider's finish reason in our terms: what a filter held back was refused, a tool call is a stop."""
    return FINISHED.get(reason, "stop")


def message_of(raw: Any) -> Message:
    """A message of the conversation with its tool calls as text; an unknown role speaks as the user."""
    said = mapped(raw)
    calls = [mapped(mapped(call).get("function")) for call in listed(said.get("tool_calls"))]
    texts = [tool_call_text(plain(call.get("name")), plain(call.get("arguments"))) for call in calls]
    content = "\n".join(part for part in (content_text(said.get("content")), *texts) if part)
    return Message(role=ROLES.get(plain(said.get("role")), "user"), content=content)


def asked_of(prompt: Any) -> list[Message]:
    """The prompt of a text completion as a user's message; of several the first, none of token numbers."""
    texts = [plain(prompt), *(plain(one) for one in listed(prompt))]
    return [Message(role="user", content=text) for text in texts if text][:1]


def content_text(content: Any) -> str:
    """The words of a message's content; a part that is no text (an image, a sound) becomes its type, `[image_url]`."""
    if isinstance(content, str):
        return plain(content)
    return "\n".join(
        plain(part.get("text")) or plain(part.get("refusal")) or f"[{plain(part.get('type')) or 'part'}]"
        for part in map(mapped, listed(content))
    )


def tool_call_text(name: str, arguments: str) -> str:
    """A tool call as a line of text."""
    return f"[tool call] {name}({arguments})"


def plain(value: Any) -> str:
    """A string that UTF-8 and every store can carry, U+FFFD for NUL; empty for whatever is no string."""
    return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def counted(value: Any) -> int:
    """A count; 0 for whatever is none."""
    return value if isinstance(value, int) and value > 0 else 0


def mapped(value: Any) -> Mapping[str, Any]:
    """A JSON object or a pydantic value as a mapping; empty for whatever is neither."""
    if isinstance(value, BaseModel):
        return value.model_dump(warnings=False)
    return value if isinstance(value, Mapping) else {}


def listed(value: Any) -> Iterable[Any]:
    """A JSON array; empty for whatever is none."""
    return value if isinstance(value, list | tuple) else ()
