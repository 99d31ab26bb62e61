"""Three consuming processes that join and leave all the time, one of them paused past its session timeout."""

from __future__ import annotations

import json
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import consumer_member
import pytest

from infra.kafka_broker import KafkaBroker
from infra.settings import LogSettings, Settings
from store.opening import open_store
from streams.codec import encode
from streams.embedded import EmbeddedLog
from streams.events import LLM_INTERACTIONS, Event, InteractionRecorded
from streams.kafka import KafkaLog
from streams.log import EventLog, lag

MEMBERS = 3
PATIENCE = 60.0


class Process:
    """A member's process, its commands and what it said."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, consumer_member.__file__, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._said: queue.Queue[dict[str, int]] = queue.Queue()
        self.counts: Counter[str] = Counter()
        self.joined = False
        threading.Thread(target=self._listen, daemon=True).start()

    def tell(self, command: str, answer: str = "") -> None:
        """Give a command; with `answer`, wait until it said that."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        if answer:
            self.wait(answer)

    def wait(self, answer: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while answer not in (said := self._said.get(timeout=max(0.01, deadline - time.monotonic()))):
            assert said, f"no {answer}"

    def move(self) -> None:
        """Leave if it is in the group, join if it is not."""
        self.tell("leave" if self.joined else "join", "left" if self.joined else "joined")
        self.joined = not self.joined

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(PATIENCE) == 0
        self.wait("stored")

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            self.counts.update(said)
            self._said.put(said)


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The broker's address, or an empty text for the embedded log. A broker of its own: the topic has no suffix."""
    if request.param == "embedded":
        yield ""
        return
    home = request.getfixturevalue("kafka_broker").home
    with KafkaBroker(home, tmp_path / "kafka") as address:
        yield address


@pytest.fixture
def log(broker: str, tmp_path: Path) -> Iterator[EventLog]:
    log = KafkaLog(LogSettings(bootstrap_servers=broker)) if broker else EmbeddedLog(tmp_path / "log.db")
    yield log
    log.close()


@pytest.fixture
def processes(broker: str, log: EventLog, tmp_path: Path) -> Iterator[list[Process]]:
    log.ensure_topics([LLM_INTERACTIONS])
    open_store(Settings(home=tmp_path)).close()
    started = [Process(str(tmp_path), *filter(None, [broker])) for _ in range(MEMBERS)]
    yield started
    for process in started:
        process.signal(signal.SIGKILL)


class Traffic:
    """Events that keep coming."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.sent = 0

    def send(self, number: int) -> None:
        records = []
        for index in range(self.sent, self.sent + number):
            data = InteractionRecorded(
                interaction_id=f"i{index}",
                conversation_id=f"c{index % 40}",
                prompt="p",
                response="r" * 200,
                finish_reason="stop",
            )
            records.append(encode(Event(id=f"e{index}", data=data)))
        self._log.append(LLM_INTERACTIONS, records)
        self.sent += number

    def drain(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while lag(self._log, consumer_member.GROUP, LLM_INTERACTIONS):
            assert time.monotonic() < deadline, "not drained"
            time.sleep(0.05)


def pause(process: Process, traffic: Traffic) -> None:
    """Stop a member with an uncommitted batch in its hands until the others took over, and let it go on."""
    process.tell("hang")
    deadline = time.monotonic() + PATIENCE
    while not process.counts["hung"]:
        assert time.monotonic() < deadline
        traffic.send(30)
        time.sleep(0.1)
    process.signal(signal.SIGSTOP)
    traffic.send(300)
    traffic.drain()  # the others have handled and committed what it holds
    process.signal(signal.SIGCONT)
    process.tell("go on")
    process.wait("rejected")


@pytest.mark.timeout(1200)
def test_every_event_has_its_effect_once_whoever_comes_and_goes(
    log: EventLog, processes: list[Process], tmp_path: Path, scale: Callable[[int, int], int]
):
    moves = scale(14, 100)
    chance = random.Random("members")
    traffic = Traffic(log)
    for process in processes:
        process.move()
    for number in range(moves):
        traffic.send(scale(60, 300))
        chance.choice(processes).move()
        if not any(process.joined for process in processes):
            chance.choice(processes).move()
        if number == moves // 2:
            for process in processes:
                if not process.joined:
                    process.move()
            pause(chance.choice(processes), traffic)
    for process in processes:
        if not process.joined:
            process.move()
    traffic.drain()
    for process in processes:
        process.end()
    store = open_store(Settings(home=tmp_path))
    counts = sum((process.counts for process in processes), Counter[str]())
    again = counts["handled"] - traffic.sent
    print(f"\n{traffic.sent} events, {counts['joined']} joins, {counts['left']} leaves, 1 member paused:", end=" ")
    print(f"{counts['stored']} effects, {again} events redelivered, {counts['rejected']} commits rejected")
    assert counts["joined"] + counts["left"] >= moves
    assert store.interactions.count() == counts["stored"] == traffic.sent
    assert again > 0  # what the paused one held was handled again: the store took it once
    assert counts["rejected"] >= 1
    store.close()
