"""Processes of an installation that die at named points of the product's own functions, and the books about them.

Two roles, each a process with the parts that `quill up` opens: `emit` puts interactions on the stream and forwards what
the outbox holds, `consume` stores what arrives. A process is told a point and a number: at that call of the point's
function, before it or after it, it kills itself with SIGKILL. `Chaos` starts them, buries and replaces them until the
plan is done, lets the last ones drain everything, and compares what was acknowledged with what is stored.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sqlalchemy import select

from infra.settings import Settings
from store.opening import open_store
from store.tables import interactions
from streams.consumer import Consumer
from streams.dead_letters import dead_letters, read_letter
from streams.embedded import EmbeddedLog
from streams.emitter import Receipt
from streams.events import LLM_INTERACTIONS, InteractionRecorded
from streams.handling import Batched
from streams.kafka import KafkaLog
from streams.log import EventLog, Record, lag
from streams.opening import open_emitter, open_log
from streams.outbox import Outbox

GROUP = "sink"
SESSION_SECONDS = 1.0
EVENTS_AT_ONCE = 256
KEYS = 50
BACKLOG = 20_000
"""Acknowledged events that may wait for the sink before the emitting processes slow down."""
STUCK_SECONDS = 60.0
DRAIN_SECONDS = 300.0
LINE_BYTES = len("r0000e00000000\n")

_processes = multiprocessing.get_context("forkserver")
# Imported once, before the first fork: a process that lives for a second must not spend it on imports.
_processes.set_forkserver_preload(["streams.kafka", "streams.opening", "streams.consumer", "store.opening"])


class Point(NamedTuple):
    """A place where a process dies."""

    name: str
    role: str
    target: str
    """`module:function` or `module:Class.method`, as the calling code finds it."""
    moment: Literal["before", "after"]
    rare: bool = False
    """A process calls it seldom: it dies at the first call."""


def both(name: str, role: str, target: str, *, rare: bool = False) -> tuple[Point, Point]:
    """The points before and after a call."""
    before, after = f"before {name}", f"after {name}"
    return Point(before, role, target, "before", rare), Point(after, role, target, "after", rare)


EMITTER = (
    Point("after an event is taken from the queue", "emit", "streams.emitter:Emitter._prepared", "after"),
    *both("receipts are settled", "emit", "streams.emitter:Emitter._settle"),
)
OUTBOX = (
    *both("a group is written", "emit", "streams.outbox_writer:SegmentWriter.write_group"),
    *both("a group is synced", "emit", "streams.outbox_writer:SegmentWriter.sync_group"),
    *both("a group is marked as whole", "emit", "streams.outbox_writer:SegmentWriter.set_mark"),
    *both("a segment is begun", "emit", "streams.outbox_writer:SegmentWriter._next_segment", rare=True),
    *both("the ends are noted", "emit", "streams.outbox:Outbox._note"),
    *both("a position is saved", "emit", "streams.outbox_positions:Positions.save"),
    *both("a batch is forgotten", "emit", "streams.outbox:Outbox._forget"),
    *both("a segment is deleted", "emit", "streams.outbox:Outbox.delete_segment", rare=True),
)
PRODUCER = (
    *both("a batch is appended", "emit", "streams.kafka:KafkaLog.append"),
    *both("a record is sent", "emit", "kafka:KafkaProducer.send"),
    *both("the producer is flushed", "emit", "kafka:KafkaProducer.flush"),
)
EMBEDDED_LOG = (
    *both("records are appended", "emit", "streams.embedded:EmbeddedLog.append"),
    Point("inside the append's transaction", "emit", "streams.embedded:EmbeddedLog._append", "after"),
)
SINK = (
    *both("events are handled", "consume", "streams.handling:Handling._call"),
    *both("events are stored", "consume", "store.interactions:InteractionStore.put_many"),
    Point("inside the store's transaction", "consume", "store.interactions:_put_interactions", "after"),
    *both("a dead letter is written", "consume", "streams.handling:Handling._append", rare=True),
)
POINTS: Mapping[str, tuple[Point, ...]] = {
    "embedded": (
        *(*EMITTER, *EMBEDDED_LOG, *SINK),
        *both("offsets are committed", "consume", "streams.embedded_group:EmbeddedReader.commit"),
    ),
    "kafka": (
        *(*EMITTER, *OUTBOX, *PRODUCER, *SINK),
        *both("offsets are committed", "consume", "streams.kafka_group:KafkaReader.commit"),
    ),
}


# --- what a process does ----------------------------------------------------------------------------------


class Orders(NamedTuple):
    """What a process is told."""

    role: str
    settings: Settings
    folder: Path
    run: int
    point: Point | None = None
    call: int = 0

    def __str__(self) -> str:
        return f"{self.role} process {self.run}, to die {self.point.name} ({self.call})" if self.point else self.role

    def over(self, word: str) -> bool:
        """The supervisor has said the word, or is gone."""
        return (self.folder / word).exists() or os.getppid() == 1


def live(orders: Orders) -> None:
    """The life of a process in its role."""
    logging.basicConfig(filename=orders.folder / "processes.log", level=logging.WARNING)
    if orders.point is not None:
        arm(orders.point, orders.call)
    try:
        {"emit": emit, "consume": consume}[orders.role](orders)
    except BaseException:
        logging.exception("%s", orders)
        raise


def arm(point: Point, call: int) -> None:
    """Replace the point's function by one that kills this process at its `call`-th call (from 1)."""
    module, _, path = point.target.partition(":")
    *parents, name = path.split(".")
    owner: Any = import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    plain: Callable[..., Any] = getattr(owner, name)
    calls = count(1)

    @wraps(plain)
    def armed(*arguments: Any, **named: Any) -> Any:
        last = next(calls) >= call
        if last and point.moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = plain(*arguments, **named)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, armed)


def interaction(name: str) -> InteractionRecorded:
    """The event of a name; its texts tell which one it is."""
    run, _, number = name.partition("e")
    return InteractionRecorded(
        interaction_id=f"i{name}",
        conversation_id=f"{run}c{int(number) % KEYS}",
        prompt=f"What is in {name}?",
        response=f"Event {number} of run {run}.",
        finish_reason="stop",
    )


def emit(orders: Orders) -> None:
    """Emit until there are enough, write the names of acknowledged events down, and forward until all are sent."""
    emitter = open_emitter(orders.settings, open_log(orders.settings), source="chaos")
    numbers = count()
    under_way: deque[list[Receipt]] = deque()
    ledger = os.open(orders.folder / "acknowledged", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(receipts: list[Receipt]) -> None:
        done = [receipt.event_id for receipt in receipts if receipt.wait(STUCK_SECONDS)]
        os.write(ledger, "".join(f"{name}\n" for name in done).encode())

    while not orders.over("enough"):
        held = (orders.folder / "hold").exists()
        names = [f"r{orders.run:04d}e{next(numbers):08d}" for _ in range(4 if held else EVENTS_AT_ONCE)]
        under_way.append([emitter.emit(interaction(name), name) for name in names])
        if held:
            time.sleep(0.02)
        while len(under_way) > (0 if held else 3):
            note(under_way.popleft())
    for receipts in under_way:
        note(receipts)
    (orders.folder / f"settled-{orders.run}").touch()
    while not orders.over("drained"):
        emitter.forward()
        time.sleep(0.05)
    emitter.close()


def consume(orders: Orders) -> None:
    """Store what arrives until nothing is left to come."""
    store = open_store(orders.settings)
    stop = threading.Event()

    def watch() -> None:
        while not orders.over("drained"):
            time.sleep(0.05)
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    log = quick_log(orders.settings)
    sink = Batched(lambda pairs: store.interactions.put_many([event for event, _ in pairs]))
    Consumer(log, GROUP, {LLM_INTERACTIONS: sink}).run(stop)


def quick_log(settings: Settings) -> EventLog:
    """The installation's log, on which a killed member counts as dead after a second."""
    if settings.log.backend == "kafka":
        return KafkaLog(settings.log, session_timeout=SESSION_SECONDS)
    return EmbeddedLog(settings.home / "log.db", partitions=settings.log.partitions, session_timeout=SESSION_SECONDS)


# --- the supervisor ---------------------------------------------------------------------------------------


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
        return (
            f"{sum(self.kills.values())} kills:\n{kills}\n{len(self.acknowledged)} events acknowledged, "
            f"{len(self.acknowledged - set(self.stored))} of them lost; {len(self.stored)} stored, "
            f"{len(self.stored) - len(set(self.stored))} of them twice; {len(self.logged)} in the log, "
            f"{len(self.logged) - len(set(self.logged))} of them twice; {len(self.disordered)} out of order and "
            f"{len(self.strange)} altered; "
            f"{len(self.dead_letters)} dead letters, {len(set(self.dead_letters))} of them different"
        )


class Chaos:
    """`kills` deaths over all `points` in turn, while at least `events` events are acknowledged.

    `processes` says how many of each role run at a time. A process dies at a call of its point between the first
    and the `depth`-th, drawn from `seed`.
    """

    def __init__(
        self,
        settings: Settings,
        points: Sequence[Point],
        *,
        kills: int,
        events: int,
        processes: Mapping[str, int],
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
        self._kills: Counter[str] = Counter()

    def run(self) -> Report:
        """Everything, and the report. Raises `AssertionError` when a point is not reached or a process fails."""
        try:
            while any(self._doomed(role) for role in self._plans) or not self._enough():
                for slot in self._slots:
                    self._look_after(slot)
                self._say("hold", self._enough() or self._backlog() > BACKLOG)
                time.sleep(0.05)
            self._drain()
        finally:
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
                return
            assert process.exitcode == -signal.SIGKILL, self._story(f"{orders} ended with {process.exitcode}")
            assert orders.point is not None, f"{orders} was killed by somebody else"
            self._kills[orders.point.name] += 1
            slot.orders = slot.process = None
        # A process without a point could keep a lock or a partition from those that have one still to reach.
        if self._plans[slot.role] or not self._doomed(slot.role):
            self._start(slot)

    def _start(self, slot: Slot) -> None:
        plan = self._plans[slot.role]
        point, call = plan.popleft() if plan else (None, 0)
        if point is not None and "dead letter" in point.name:
            self._append_poison()
        slot.orders = Orders(slot.role, self._settings, self._folder, next(self._runs), point, call)
        slot.process = _processes.Process(target=live, args=(slot.orders,))
        slot.process.start()
        slot.since = time.monotonic()

    def _append_poison(self) -> None:
        self._poison.append(f"poison {len(self._poison)}")
        self._log.append(LLM_INTERACTIONS, [Record(key="poison", value=self._poison[-1].encode())])

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
        return self._acknowledged() - sum(self._log.committed(GROUP, LLM_INTERACTIONS).values())

    def _drain(self) -> None:
        for slot in self._slots:
            self._look_after(slot)
        self._say("enough")
        emitting = [slot for slot in self._slots if slot.role == "emit"]
        self._wait(lambda: all((self._folder / f"settled-{slot.orders.run}").exists() for slot in emitting))
        outbox = Outbox(self._settings.home / "outbox")
        self._wait(lambda: outbox.waiting() == 0)
        outbox.close()
        if "consume" in self._plans:
            self._wait(lambda: lag(self._log, GROUP, LLM_INTERACTIONS) == 0)
        self._say("drained")
        self._wait(lambda: not any(self._lives(slot) for slot in self._slots))

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
            kills=self._kills,
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
