"""Which chat model the settings mean."""

from __future__ import annotations

from pathlib import Path

from infra.errors import InputError
from infra.llm import local
from infra.llm.chat import ChatModel
from infra.llm.endpoint import Connection, EndpointChat
from infra.llm.weights import adapter_digits
from infra.settings import JudgeSettings, LlmSettings, ModelSettings

LOCAL_TIMEOUT = 600.0
"""Seconds for a request to the local server: on two cores a queued request waits for the ones before it."""


def open_chat(
    llm: LlmSettings | JudgeSettings,
    models: ModelSettings,
    *,
    model: str | None = None,
    adapter: Path | None = None,
) -> ChatModel:
    """The chat model of these settings: their endpoint when one is set, otherwise the machine's llama.cpp server.

    `model` replaces the settings' model; `adapter` is a GGUF LoRA file for the local server. Nothing is loaded or
    asked before the first `complete`. Raises `NotFound` when the adapter file does not exist and `InputError` when
    an adapter is asked of an endpoint.
    """
    name = model or llm.model
    timeout = llm.timeout if isinstance(llm, LlmSettings) else LlmSettings().timeout
    if llm.endpoint:
        if adapter is not None:
            fix = "load the adapter in the endpoint and name it as the model, or empty the endpoint setting"
            raise InputError("an endpoint cannot be given a local adapter", seen=adapter, fix=fix)
        place = Connection(base_url=llm.endpoint, api_key=llm.api_key)
        return EndpointChat(name, lambda: place, timeout=timeout)
    label = f"{name}+adapter:{adapter_digits(adapter)}" if adapter else name
    return EndpointChat(
        name, lambda: local.connect(models, name, adapter), timeout=max(timeout, LOCAL_TIMEOUT), llama=True, label=label
    )
