"""A chat model that says what it was told to: the fake that ships beside the real ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from infra.errors import InputError
from infra.llm.chat import Completion, Decoding, Message


class ScriptedChat:
    """Answers with the given replies in turn, or with what a function makes of the messages.

    Words stand for tokens. `calls` holds the messages of every request, oldest first. Raises `InputError` when the
    replies are used up.
    """

    def __init__(self, replies: Sequence[str] | Callable[[Sequence[Message]], str], model: str = "scripted") -> None:
        self._replies = replies
        self._model = model
        self.calls: list[tuple[Message, ...]] = []

    @property
    def model(self) -> str:
        """The name given."""
        return self._model

    def complete(
        self,
        messages: Sequence[Message],
        decoding: Decoding | None = None,
        *,
        json_schema: Mapping[str, Any] | None = None,  # noqa: ARG002 (a script may also break its schema)
        on_text: Callable[[str], None] | None = None,
    ) -> Completion:
        """The next reply, cut at `max_tokens` words and before the first stop sequence. See `ChatModel.complete`."""
        decoding = decoding or Decoding()
        self.calls.append(tuple(messages))
        reply = self._next(messages)
        ends = [place for stop in decoding.stop if (place := reply.find(stop)) >= 0]
        words = re.findall(r"\s*\S+(?:\s+$)?", reply[: min(ends)] if ends else reply)
        kept = words[: decoding.max_tokens]
        for word in kept:
            if on_text is not None:
                on_text(word)
        return Completion(
            text="".join(kept),
            finish_reason="length" if len(kept) < len(words) else "stop",
            input_tokens=sum(len(message.content.split()) for message in messages),
            output_tokens=len(kept),
        )

    def _next(self, messages: Sequence[Message]) -> str:
        if callable(self._replies):
            return self._replies(messages)
        if len(self.calls) > len(self._replies):
            raise InputError("the script has no reply left", seen=len(self._replies), fix="give it more replies")
        return self._replies[len(self.calls) - 1]
