"""A consumer beside the API goes on after what may pass, and tells when it does not."""

from __future__ import annotations

import threading

import pytest

from infra.errors import Unavailable
from serving import background
from serving.background import Background


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(background, "FIRST_WAIT", 0.001)


def test_it_tries_again_until_it_works():
    stop, calls = threading.Event(), []
    running = threading.Event()

    def work(halt: threading.Event) -> None:
        calls.append(1)
        if len(calls) < 3:
            raise Unavailable("the broker is away")
        running.set()
        halt.wait(10)

    consumer = Background("features", work, stop)
    consumer.start()
    assert running.wait(10)
    assert consumer.part().state == "ok"
    stop.set()
    consumer.join(10)
    assert not consumer.is_alive()
    assert len(calls) == 3


def test_while_it_waits_it_says_why(monkeypatch):
    monkeypatch.setattr(background, "FIRST_WAIT", 60)
    stop, failed = threading.Event(), threading.Event()

    def work(_halt: threading.Event) -> None:
        failed.set()
        raise Unavailable("the broker is away")

    consumer = Background("features", work, stop)
    consumer.start()
    assert failed.wait(10)
    while not consumer.part().detail:
        pass
    assert consumer.part().state == "waiting"
    assert consumer.part().detail == {"problem": "the broker is away"}
    stop.set()
    consumer.join(10)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_nobody_foresaw_ends_it_and_shows():
    def work(_halt: threading.Event) -> None:
        raise ZeroDivisionError

    consumer = Background("monitor", work, threading.Event())
    consumer.start()
    consumer.join(10)
    assert consumer.part().state == "failed"
    assert "log" in consumer.part().detail["problem"]
