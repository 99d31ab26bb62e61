"""The chat protocol that every language-model backend speaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from pydantic import Field

from infra.identity import Value


class Message(Value):
    """One chat message."""

    role: Literal["system", "user", "assistant", "tool"] = Field(description="Who speaks.")
    content: str = Field(description="The text.")


class Decoding(Value):
    """How the next token is drawn."""

    temperature: float = Field(0.0, ge=0, le=2, description="gen_ai.request.temperature; 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="gen_ai.request.top_p; 1 is off.")
    max_tokens: int = Field(256, ge=1, description="gen_ai.request.max_tokens")
    seed: int = Field(7, ge=0, description="gen_ai.request.seed")
    repeat_penalty: float = Field(1.0, ge=1, le=2, description="1 is off; ignored by endpoints that lack it.")
    stop: tuple[str, ...] = Field((), description="gen_ai.request.stop_sequences")


class Completion(Value):
    """What a model wrote."""

    text: str = Field(description="The text.")
    finish_reason: Literal["stop", "length"] = Field(description="Why it ended.")
    input_tokens: int = Field(ge=0, description="Prompt tokens, cached ones included.")
    output_tokens: int = Field(ge=0, description="Written tokens.")


class ChatModel(Protocol):
    """Messages to text."""

    @property
    def model(self) -> str:
        """Model name, with `+adapter:<12 digits>` when an adapter is applied."""
        ...

    def complete(
        self,
        messages: Sequence[Message],
        decoding: Decoding | None = None,
        *,
        json_schema: Mapping[str, Any] | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Completion:
        """Write; `json_schema` holds the text to a schema. `on_text` receives pieces as they come; when it
        raises, generation stops and the exception propagates.

        Raises `Unavailable` when the model cannot be reached, `InputError` when the prompt does not fit.
        """
        ...
