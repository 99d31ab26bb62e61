"""A command asks the running server of its installation, and knows a stale announcement when it sees one."""

from __future__ import annotations

import os
import subprocess

import pytest

from infra.errors import QuillError, Unavailable
from infra.settings import load_settings
from serving import asking
from serving.presence import FILE, Presence, announce, running, withdraw
from serving.surface import SearchRequest, WriteRequest


@pytest.fixture
def settings(tmp_path):
    return load_settings(environment={"QUILL_HOME": str(tmp_path)}, file=tmp_path / "none.toml")


@pytest.fixture
def served(settings, live, platform):
    platform.home = str(settings.home)
    announce(settings.home, Presence(pid=os.getpid(), url=live.url))
    return settings


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_server_that_answers_for_this_home_is_found(served, live):
    assert running(served.home) == Presence(pid=os.getpid(), url=live.url)


def test_nothing_announced_means_no_server(settings):
    assert running(settings.home) is None


def test_a_torn_announcement_means_no_server(settings):
    (settings.home / FILE).write_text('{"pid":')
    assert running(settings.home) is None


def test_a_dead_process_means_no_server(settings, live):
    announce(settings.home, Presence(pid=dead_pid(), url=live.url))
    assert running(settings.home) is None


def test_a_process_that_is_not_the_server_means_no_server(settings):
    announce(settings.home, Presence(pid=os.getpid(), url="http://127.0.0.1:1"))
    assert running(settings.home) is None


def test_a_server_of_another_installation_is_not_asked(served, platform):
    platform.home = "/elsewhere"
    assert running(served.home) is None


def test_only_the_announcer_withdraws(settings):
    announce(settings.home, Presence(pid=dead_pid(), url="http://127.0.0.1:1"))
    withdraw(settings.home)
    assert (settings.home / FILE).exists()
    announce(settings.home, Presence(pid=os.getpid(), url="http://127.0.0.1:1"))
    withdraw(settings.home)
    assert not (settings.home / FILE).exists()


def test_search_and_write_go_to_the_running_server(served, platform):
    assert [hit.chunk_id for hit in asking.search(served, SearchRequest(question="lora"))] == ["sha256:c1"]
    answer = asking.write(served, WriteRequest(question="What does LoRA train?"))
    assert answer.text == "LoRA trains two small matrices. [1]"
    assert platform.requests[0].question == "What does LoRA train?"


def test_a_streamed_answer_is_the_same_answer(served):
    pieces: list[str] = []
    answer = asking.write(served, WriteRequest(question="What does LoRA train?"), pieces.append)
    assert "".join(pieces) == "LoRA trains two small matrices."
    assert answer.text == "LoRA trains two small matrices. [1]"
    assert answer.citations[0].quote in answer.chunks[0].text


@pytest.mark.parametrize("after", [0, 1])
def test_an_error_of_the_server_is_the_error_of_the_command(served, platform, after):
    platform.problem, platform.problem_after = Unavailable("the model went away", fix="start it"), after
    with pytest.raises(QuillError, match="the model went away; fix: start it"):
        asking.write(served, WriteRequest(question="x"), [].append)
    with pytest.raises(QuillError, match="the model went away"):
        asking.write(served, WriteRequest(question="x"))
