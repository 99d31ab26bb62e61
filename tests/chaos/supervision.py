"""Starting, burying and replacing the processes of `kill_points`, and the books about them."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from kill_points import EMITTING, GROUP, LINE_BYTES, STUCK_SECONDS, Orders, Point, interaction, live, lives, quick_log
from sqlalchemy import select

from infra.settings import Settings
from store.opening import open_store
from store.tables import interactions
from streams.dead_letters import dead_letters, read_letter
from streams.events import LLM_INTERACTIONS
from streams.log import EventLog, Record, lag
from streams.outbox import Outbox

BACKLOG = 20_000
"""Events in the log that may wait for the sink before the emitting processes slow down."""
POISON_SECONDS = 0.5
DRAIN_SECONDS = 600.0

_processes = multiprocessing.get_context("forkserver")
# Imported once, before the first fork: a process that lives for a second must not spend it on imports.
_processes.set_forkserver_preload(["streams.kafka", "streams.opening", "streams.consumer", "store.opening"])


@dataclass
class Slot:
    """A place for a living process of a role."""

    role: str
    orders: Orders | None = None
    process: BaseProcess | None = None
    since: float = 0.0
    """When the process was started, in seconds of the monotonic clock."""


class Report(NamedTuple):
    """What came of it."""

    kills: Counter[str]
    """By point."""
    acknowledged: set[str]
    stored: list[str]
    """Names of the stored events."""
    logged: list[str]
    """Names of the events in the log, by partition and offset."""
    strange: list[str]
    """Stored events whose texts are not theirs."""
    disordered: list[str]
    """Events that stand in the log behind a later one of their key."""
    dead_letters: list[str]

    def __str__(self) -> str:
        kills = "\n".join(f"  {number:4} {name}" for name, number in sorted(self.kills.items()))
        books = [
            f"{self.kills.total()} kills:\n{kills}\n{len(self.acknowledged)} events acknowledged",
            f"{len(self.acknowledged - set(self.logged))} of them not in the log",
            f"{len(self.logged)} in the log, {len(self.logged) - len(set(self.logged))} of them twice",
            f"{len(self.disordered)} out of order",
        ]
        if self.stored:
            books += [
                f"{len(self.stored)} stored, {len(self.stored) - len(set(self.stored))} of them twice",
                f"{len(self.acknowledged - set(self.stored))} acknowledged ones not stored",
                f"{len(self.strange)} altered",
                f"{len(self.dead_letters)} dead letters, {len(set(self.dead_letters))} of them different",
            ]
        return "; ".join(books)


class Chaos:
    """`kills` deaths over all `points` in turn, while at least `events` events are acknowledged.

    `processes` says how many of each role run at a time, `forks` how many children each emitting one has, which die
    by themselves too. A process dies at a call of its point between the first and the `depth`-th, drawn from `seed`.
    """

    def __init__(
        self,
        settings: Settings,
        points: Sequence[Point],
        *,
        kills: int,
        events: int,
        processes: Mapping[str, int],
        forks: int = 0,
        depth: int = 10,
        seed: str = "chaos",
    ) -> None:
        chance = random.Random(seed)
        turns = [points[number % len(points)] for number in range(kills)]
        chance.shuffle(turns)
        self._plans: dict[str, deque[tuple[Point, int]]] = {role: deque() for role in processes}
        for point in turns:
            self._plans[point.role].append((point, 1 if point.rare else chance.randint(1, depth)))
        self._slots = [Slot(role) for role, number in processes.items() for _ in range(number)]
        self._settings = settings
        self._folder = settings.home.parent
        self._log = quick_log(settings)
        self._log.ensure_topics([LLM_INTERACTIONS])
        self._events = events
        self._runs = count()
        self._poison: list[str] = []
        self._next_poison = 0.0
        self._forks = forks

    def run(self) -> Report:
        """Everything, and the report. Raises `AssertionError` when a point is not reached or a process fails."""
        try:
            while any(self._doomed(role) for role in self._plans) or not self._enough():
                for slot in self._slots:
                    self._look_after(slot)
                self._say("hold", self._enough() or self._backlog() > BACKLOG)
                time.sleep(0.1)
            self._drain()
        finally:
            for process in filter(lives, self._emitting()):  # the forked ones too
                os.kill(process, signal.SIGKILL)
            for slot in self._slots:
                if slot.process is not None:
                    slot.process.kill()
                    slot.process.join()
        report = self._report()
        self._log.close()
        return report

    def _doomed(self, role: str) -> bool:
        """Some process of the role is still to die."""
        return bool(self._plans[role]) or any(
            slot.orders is not None and slot.orders.point is not None for slot in self._slots if slot.role == role
        )

    def _look_after(self, slot: Slot) -> None:
        orders, process = slot.orders, slot.process
        if orders is not None and process is not None:
            if process.is_alive():
                stuck = orders.point is not None and time.monotonic() - slot.since > STUCK_SECONDS
                assert not stuck, self._story(f"{orders} did not")
                self._feed(orders)
                return
            assert process.exitcode == -signal.SIGKILL, self._story(f"{orders} ended with {process.exitcode}")
            assert orders.point is not None, f"{orders} was killed by somebody else"
            slot.orders = slot.process = None
        # A process without a point could keep a lock or a partition from those that have one still to reach.
        if self._plans[slot.role] or not self._doomed(slot.role):
            self._start(slot)

    def _start(self, slot: Slot) -> None:
        plan = self._plans[slot.role]
        point, call = plan.popleft() if plan else (None, 0)
        run, supervisor = next(self._runs), os.getpid()
        slot.orders = Orders(slot.role, self._settings, self._folder, run, supervisor, point, call, self._forks)
        slot.process = _processes.Process(target=live, args=(slot.orders,))
        slot.process.start()
        slot.since = time.monotonic()

    def _feed(self, orders: Orders) -> None:
        """Now and then a record to put aside, of another key each time, for whom a dead letter is the death of."""
        if orders.point is not None and "dead letter" in orders.point.name and time.monotonic() > self._next_poison:
            self._next_poison = time.monotonic() + POISON_SECONDS
            self._poison.append(f"poison {len(self._poison)}")
            self._log.append(LLM_INTERACTIONS, [Record(key=self._poison[-1], value=self._poison[-1].encode())])

    def _say(self, word: str, true: bool = True) -> None:
        if true:
            (self._folder / word).touch()
        else:
            (self._folder / word).unlink(missing_ok=True)

    def _acknowledged(self) -> int:
        ledger = self._folder / "acknowledged"
        return ledger.stat().st_size // LINE_BYTES if ledger.exists() else 0

    def _enough(self) -> bool:
        return self._acknowledged() >= self._events

    def _backlog(self) -> int:
        return lag(self._log, GROUP, LLM_INTERACTIONS) if "consume" in self._plans else 0

    def _drain(self) -> None:
        for slot in self._slots:
            self._look_after(slot)
        self._say("enough")
        self._wait(lambda: not any(map(lives, self._emitting())))
        outbox = Outbox(self._settings.home / "outbox")
        self._wait(lambda: outbox.waiting() == 0)
        outbox.close()
        if "consume" in self._plans:
            self._wait(lambda: lag(self._log, GROUP, LLM_INTERACTIONS) == 0)
        self._say("drained")
        self._wait(lambda: not any(self._lives(slot) for slot in self._slots))

    def _emitting(self) -> list[int]:
        return [int(sign.name.removeprefix(EMITTING)) for sign in self._folder.glob(f"{EMITTING}*")]

    def _lives(self, slot: Slot) -> bool:
        assert slot.process is not None
        assert slot.process.exitcode in (None, 0), self._story(f"{slot.orders} ended with {slot.process.exitcode}")
        return slot.process.is_alive()

    def _wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DRAIN_SECONDS
        while not done():
            assert time.monotonic() < deadline, self._story(f"nothing moved for {DRAIN_SECONDS:.0f} s")
            time.sleep(0.05)

    def _story(self, what: str) -> str:
        """What went wrong, with what the processes wrote last."""
        return "\n".join([what, *(self._folder / "processes.log").read_text().splitlines()[-30:]])

    def _report(self) -> Report:
        lines = (self._folder / "acknowledged").read_text()
        stored, strange = _stored(self._settings)
        logged, disordered = _logged(self._log)
        letters = [
            read_letter(self._log, letter).value.decode() for letter in dead_letters(self._log, LLM_INTERACTIONS)
        ]
        assert set(letters) == set(self._poison)
        return Report(
            kills=Counter((self._folder / "deaths").read_text().splitlines()),
            acknowledged=set(lines[: lines.rfind("\n") + 1].split()),
            stored=stored,
            logged=logged,
            strange=strange,
            disordered=disordered,
            dead_letters=letters,
        )


def _stored(settings: Settings) -> tuple[list[str], list[str]]:
    """Names of the events in the store, and of those whose texts are not theirs."""
    store = open_store(settings)
    with store.engine.connect() as connection:
        rows = connection.execute(select(interactions.c.event_id, interactions.c.payload)).all()
    store.close()
    strange = [name for name, payload in rows if json.loads(payload)["prompt"] != interaction(name).prompt]
    return [name for name, _ in rows], strange


def _logged(log: EventLog) -> tuple[list[str], list[str]]:
    """Names of the events in the log, and of those that stand behind a later one of their key."""
    names: list[str] = []
    disordered: list[str] = []
    for partition in log.end_offsets(LLM_INTERACTIONS):
        last: dict[str, str] = {}
        for record in _records(log, partition):
            name = dict(record.headers).get("ce_id", b"").decode()
            if name:
                names.append(name)
                disordered += [name] if last.get(record.key, "") >= name else []
                last[record.key] = name
    return names, disordered


def _records(log: EventLog, partition: int) -> Iterator[Record]:
    offset = 0
    while page := log.read(LLM_INTERACTIONS, partition, offset, limit=5000):
        yield from page
        offset = page[-1].offset + 1
