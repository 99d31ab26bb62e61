"""Chat over the OpenAI protocol: any compatible endpoint, and our own llama.cpp server on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import Field, SecretStr

from infra.errors import InputError, NotFound, QuillError, SettingsError, Unavailable
from infra.identity import Value
from infra.llm.chat import Completion, Decoding, Message

LLAMA_SAMPLING = {"top_k": 40, "min_p": 0.05, "cache_prompt": True}
"""llama.cpp's own defaults for what `Decoding` leaves open, pinned so that an upgrade cannot change the text."""


class Connection(Value):
    """Where an OpenAI-compatible endpoint answers."""

    base_url: str = Field(description="Base URL, ending in /v1.")
    api_key: SecretStr = Field(SecretStr(""), description="API key; empty when the endpoint wants none.")


class EndpointChat:
    """A `ChatModel` behind an OpenAI-compatible endpoint.

    `connect` is called before each request and says where to send it; for our own server it also starts the server
    and loads the model when needed. `llama` marks that server: it understands `repeat_penalty`, it is never reached
    through a proxy, and a request that finds it gone connects once more. `label` is what `.model` says when it
    differs from the name that the endpoint knows.
    """

    def __init__(
        self,
        model: str,
        connect: Callable[[], Connection],
        *,
        timeout: float = 180.0,
        llama: bool = False,
        label: str = "",
        retries: int = 2,
    ) -> None:
        self._name = model
        self._connect = connect
        self._timeout = timeout
        self._llama = llama
        self._label = label or model
        self._retries = retries
        self._clients: dict[Connection, Any] = {}
        self._refuses_schema = False

    @property
    def model(self) -> str:
        """Model name, with `+adapter:<12 digits>` when an adapter is applied."""
        return self._label

    def complete(
        self,
        messages: Sequence[Message],
        decoding: Decoding | None = None,
        *,
        json_schema: Mapping[str, Any] | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Completion:
        """Write, see `ChatModel.complete`. An endpoint without JSON-schema support gets the schema in words.

        Token counts are 0 when the endpoint reports none. Raises `Unavailable` (unreachable, refused key, rate
        limit), `NotFound` (unknown model) and `InputError` (the prompt does not fit, or the request is refused).
        """
        request = self._request(messages, decoding or Decoding())
        started = [False]

        def heard(piece: str) -> None:
            started[0] = True
            if on_text is not None:
                on_text(piece)

        listener = heard if on_text is not None else None
        try:
            return self._with_schema(request, json_schema, listener)
        except Unavailable as error:
            vanished = self._llama and _is_connection_error(error.__cause__)
            if not vanished or started[0]:
                raise
        return self._with_schema(request, json_schema, listener)

    def _request(self, messages: Sequence[Message], decoding: Decoding) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self._name,
            "messages": [message.model_dump() for message in messages],
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "max_tokens": decoding.max_tokens,
            "seed": decoding.seed,
        }
        if decoding.stop:
            request["stop"] = list(decoding.stop)
        if self._llama:
            request["extra_body"] = LLAMA_SAMPLING | {"repeat_penalty": decoding.repeat_penalty}
        return request

    def _with_schema(
        self, request: dict[str, Any], schema: Mapping[str, Any] | None, on_text: Callable[[str], None] | None
    ) -> Completion:
        if schema is None:
            return self._send(request, on_text)
        if not self._refuses_schema:
            shape = {"name": "answer", "strict": True, "schema": dict(schema)}
            held = request | {"response_format": {"type": "json_schema", "json_schema": shape}}
            try:
                return self._send(held, on_text)
            except InputError as error:
                if self._llama or "response_format" not in str(error.__cause__):
                    raise
                self._refuses_schema = True
        order = f"Answer with one JSON object and nothing else. It follows this JSON schema: {json.dumps(dict(schema))}"
        return self._send(request | {"messages": _with_order(request["messages"], order)}, on_text)

    def _send(self, request: dict[str, Any], on_text: Callable[[str], None] | None) -> Completion:
        import openai

        connection = self._connect()
        client = self._client(connection)
        try:
            if on_text is None:
                return _whole(client.chat.completions.create(**request))
            options = {"stream": True, "stream_options": {"include_usage": True}}
            with client.chat.completions.create(**request, **options) as stream:
                return _streamed(stream, on_text)
        except openai.OpenAIError as error:
            raise _explained(error, self._name, connection.base_url, self._timeout) from error

    def _client(self, connection: Connection) -> Any:
        if connection not in self._clients:
            import openai

            self._clients = {connection: openai.OpenAI(**self._options(connection))}
        return self._clients[connection]

    def _options(self, connection: Connection) -> dict[str, Any]:
        options: dict[str, Any] = {
            "base_url": connection.base_url,
            "api_key": connection.api_key.get_secret_value() or "none",
            "timeout": self._timeout,
            "max_retries": 0 if self._llama else self._retries,
        }
        if self._llama:
            import openai

            options["http_client"] = openai.DefaultHttpxClient(trust_env=False)
        return options


def _with_order(messages: list[dict[str, Any]], order: str) -> list[dict[str, Any]]:
    if messages and messages[0]["role"] == "system":
        return [messages[0] | {"content": f"{messages[0]['content']}\n\n{order}"}, *messages[1:]]
    return [{"role": "system", "content": order}, *messages]


def _whole(answer: Any) -> Completion:
    choice = answer.choices[0]
    return _completion(choice.message.content or "", choice.finish_reason, answer.usage)


def _streamed(chunks: Iterable[Any], on_text: Callable[[str], None]) -> Completion:
    pieces: list[str] = []
    reason = usage = None
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            reason = choice.finish_reason or reason
            if choice.delta.content:
                pieces.append(choice.delta.content)
                on_text(choice.delta.content)
    return _completion("".join(pieces), reason, usage)


def _completion(text: str, reason: str | None, usage: Any) -> Completion:
    return Completion(
        text=text,
        finish_reason="length" if reason == "length" else "stop",
        input_tokens=usage.prompt_tokens if usage else 0,
        output_tokens=usage.completion_tokens if usage else 0,
    )


def _is_connection_error(error: BaseException | None) -> bool:
    import openai

    return isinstance(error, openai.APIConnectionError) and not isinstance(error, openai.APITimeoutError)


def _explained(error: Exception, model: str, base_url: str, timeout: float) -> QuillError:
    """What the user can do about an error of the `openai` client."""
    import openai

    seen = f"{base_url}: {error}"
    match error:
        case openai.APITimeoutError():
            return Unavailable(f"the model {model} did not answer in {timeout:g} s", seen=base_url, fix="raise timeout")
        case openai.APIConnectionError():
            fix = "check the address and that the endpoint runs"
            return Unavailable("the language model cannot be reached", seen=base_url, rule=str(error), fix=fix)
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return Unavailable(
                "the endpoint refused the API key", seen=base_url, fix="set llm.api_key or judge.api_key"
            )
        case openai.NotFoundError():
            return NotFound(f"the endpoint does not know the model {model}", seen=seen, fix="set llm.model")
        case openai.RateLimitError():
            return Unavailable("the endpoint's rate limit is reached", seen=seen, fix="wait, or raise the quota")
        case openai.BadRequestError() | openai.UnprocessableEntityError() if _is_too_long(str(error)):
            return InputError("the prompt does not fit the model's context", seen=seen, fix="shorten the prompt")
        case openai.BadRequestError() | openai.UnprocessableEntityError():
            return InputError("the endpoint refused the request", seen=seen, fix="mend what the endpoint names")
        case openai.APIStatusError():
            return Unavailable("the endpoint failed", seen=seen, fix="try again later")
        case _:
            return SettingsError("the endpoint cannot be used", seen=seen, fix="check llm.endpoint and llm.api_key")


def _is_too_long(message: str) -> bool:
    lowered = message.lower()
    return "context" in lowered and any(word in lowered for word in ("exceed", "length", "long", "maximum"))
