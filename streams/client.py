"""What an application calls to put facts on the stream: one emitter per process and application name."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache
from typing import TypeVar

from pydantic import ValidationError

from infra.errors import InputError
from infra.settings import load_settings
from streams.emitter import Emitter, Receipt
from streams.events import Criterion, FeedbackGiven, Payload
from streams.opening import open_emitter, open_log
from streams.wrapping import wrap_client

APPLICATION = "application"
LOWEST, HIGHEST = 1, 5

T = TypeVar("T")
_opening = threading.Lock()


def emit(payload: Payload, event_id: str | None = None, *, application: str = APPLICATION) -> Receipt:
    """Put a fact on the stream, masked. Returns at once; `wait()` of the receipt tells when it is durable.

    Raises `SettingsError` when the settings cannot be read; nothing else.
    """
    return _emitter(application).emit(payload, event_id)


def feedback(
    interaction_id: str,
    *,
    ratings: Mapping[Criterion, float] | None = None,
    edited_response: str | None = None,
    preferred_over: str | None = None,
    comment: str = "",
    reviewer: str = "",
) -> Receipt:
    """Put what a person says of an interaction on the stream; `ratings` maps a criterion to 1..5.

    Raises `InputError` for what the contract does not take.
    """
    given = dict(ratings or {})
    for criterion, rating in given.items():
        if not LOWEST <= rating <= HIGHEST:
            raise InputError(f"the rating of {criterion} is outside the scale", seen=rating, rule="1 to 5")
    try:
        payload = FeedbackGiven(
            interaction_id=interaction_id,
            reviewer=reviewer,
            ratings=given,
            edited_response=edited_response,
            preferred_over=preferred_over,
            comment=comment,
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InputError(f"feedback: {name} is not valid", seen=first.get("input"), rule=first["msg"]) from error
    return emit(payload)


def wrap(client: T, *, application: str = APPLICATION) -> T:
    """The same `openai.OpenAI` or `AsyncOpenAI` client; each chat completion is recorded under the application's name.

    Raises `SettingsError` when the settings cannot be read; the client's calls never raise or wait for recording.
    """
    return wrap_client(client, _emitter(application), application)


def _emitter(application: str) -> Emitter:
    with _opening:
        return _opened(application)


@cache
def _opened(application: str) -> Emitter:
    settings = load_settings()
    return open_emitter(settings, open_log(settings), source=application)
