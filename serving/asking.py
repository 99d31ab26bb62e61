"""Ask this installation: its running server when there is one, else the rooms opened here and now."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from infra.errors import QuillError, Unavailable
from infra.settings import Settings
from serving.presence import Presence, running
from serving.surface import Hit, SearchRequest, WriteRequest, Written, hits, to_answer_request, written

if TYPE_CHECKING:
    import httpx

SEARCH_SECONDS = 120.0
WRITE_SECONDS = 900.0
"""A request to the local writer waits for those before it; one takes about half a minute on two cores."""


def search(settings: Settings, request: SearchRequest) -> list[Hit]:
    """The most relevant chunks, best first."""
    server = running(settings.home)
    if server is not None:
        answer = _post(server, "/v1/search", request.model_dump(mode="json"), SEARCH_SECONDS)
        return [Hit.model_validate(hit) for hit in answer]
    from serving.app import Rooms

    with Rooms(settings) as rooms:
        rooms.catch_up()
        return hits(rooms.search(request.question, request.limit))


def write(settings: Settings, request: WriteRequest, on_text: Callable[[str], None] | None = None) -> Written:
    """Grounded text; `on_text` receives pieces as they are written (without [n] markers, which come last)."""
    server = running(settings.home)
    if server is not None and on_text is not None:
        return _stream(server, request, on_text)
    if server is not None:
        body = request.model_dump(mode="json")
        return Written.model_validate(_post(server, "/v1/write", body, WRITE_SECONDS))
    from serving.app import Rooms

    with Rooms(settings) as rooms:
        rooms.catch_up()
        return written(rooms.answer(to_answer_request(request), on_text))


def _post(server: Presence, path: str, body: dict[str, Any], timeout: float) -> Any:
    import httpx

    try:
        response = httpx.post(server.url + path, json=body, timeout=timeout, trust_env=False)
        return _checked(response).json()
    except httpx.HTTPError as error:
        raise _went_away(server, error) from error


def _stream(server: Presence, request: WriteRequest, on_text: Callable[[str], None]) -> Written:
    import httpx

    body = {
        "model": request.channel,
        "messages": [{"role": "user", "content": request.question}],
        "max_tokens": request.max_tokens,
        "metadata": {"conversation_id": request.conversation_id},
        "stream": True,
    }
    final: dict[str, Any] = {}
    try:
        url = f"{server.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=WRITE_SECONDS, trust_env=False) as response:
            if response.status_code != 200:
                response.read()
            for line in _checked(response).iter_lines():
                final = _heard(line, on_text) or final
    except httpx.HTTPError as error:
        raise _went_away(server, error) from error
    return Written.model_validate({name: final[name] for name in Written.model_fields})


def _heard(line: str, on_text: Callable[[str], None]) -> dict[str, Any]:
    """One line of the stream: its piece goes to `on_text`; the event with the whole answer is returned."""
    if not line.startswith("data: {"):
        return {}
    event = json.loads(line.removeprefix("data: "))
    if "error" in event:
        raise QuillError(event["error"]["message"])
    for choice in event["choices"]:
        if choice["delta"].get("content"):
            on_text(choice["delta"]["content"])
    return event if "interaction_id" in event else {}


def _checked(response: httpx.Response) -> httpx.Response:
    if response.status_code == 200:
        return response
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the running server answered {response.status_code}; seen: {response.text[:200]}"
    raise QuillError(message)


def _went_away(server: Presence, error: Exception) -> Unavailable:
    return Unavailable(
        "the running server stopped answering", seen=f"{server.url}: {error}", fix="look at its terminal, or run again"
    )
