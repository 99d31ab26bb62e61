"""An application with a home of its own, an endpoint that it calls, and what it put on the stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from chat_upstream import ChatUpstream

from streams import client as client_module
from streams.codec import decode
from streams.events import LLM_INTERACTIONS
from streams.opening import open_log


@pytest.fixture
def home(settings, monkeypatch) -> Iterator[None]:
    monkeypatch.setenv("QUILL_HOME", str(settings.home))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(settings.home.parent)
    client_module._opened.cache_clear()
    yield
    client_module._opened.cache_clear()


@pytest.fixture
def upstream() -> Iterator[ChatUpstream]:
    opened = ChatUpstream()
    yield opened
    opened.close()


@pytest.fixture
def recorded(home, settings) -> Callable[..., list]:
    """Payloads on a topic, by time, once everything emitted is there."""

    def read(topic: str = LLM_INTERACTIONS) -> list:
        assert client_module._opened("blog").flush(10)
        assert client_module._opened("application").flush(10)
        log = open_log(settings)
        found = [decode(one) for place in log.end_offsets(topic) for one in log.read(topic, place, 0)]
        log.close()
        return [event.data for event in sorted(found, key=lambda event: event.time)]

    return read
