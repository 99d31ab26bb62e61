"""Processes of an installation that die at named points of the product's own functions.

Two roles, each a process with the parts that `quill up` opens: `emit` puts interactions on the stream and forwards what
the outbox holds, `consume` stores what arrives. A process is told a point and a number: at that call of the point's
function, before it or after it, it kills itself with SIGKILL. `supervision.Chaos` starts and replaces them.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil

from infra.settings import Settings
from store.opening import open_store
from streams.consumer import Consumer
from streams.embedded import EmbeddedLog
from streams.emitter import Emitter, Receipt
from streams.events import LLM_INTERACTIONS, InteractionRecorded
from streams.handling import Batched
from streams.kafka import KafkaLog
from streams.log import EventLog
from streams.opening import open_emitter, open_log

GROUP = "sink"
SESSION_SECONDS = 1.0
EVENTS_AT_ONCE = 256
EVENTS_OF_A_FORK = 1_000_000
KEYS = 50
STUCK_SECONDS = 120.0
EMITTING = "emitting-"
"""Begins the name of a file that is there while the process whose id follows may still emit."""
LINE_BYTES = len("r0000e00000000\n")


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
SEGMENTS = (
    *both("a group is written", "emit", "streams.outbox_writer:SegmentWriter.write_group"),
    *both("a group is synced", "emit", "streams.outbox_writer:SegmentWriter.sync_group"),
    *both("a group is marked as whole", "emit", "streams.outbox_writer:SegmentWriter.set_mark"),
    *both("a segment is begun", "emit", "streams.outbox_writer:SegmentWriter._next_segment", rare=True),
)
FORWARDER = (
    *both("the ends are noted", "emit", "streams.outbox:Outbox._note"),
    *both("a position is saved", "emit", "streams.outbox_positions:Positions.save"),
    *both("a batch is forgotten", "emit", "streams.outbox:Outbox._forget"),
    *both("a segment is deleted", "emit", "streams.outbox:Outbox.delete_segment", rare=True),
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
        *(*EMITTER, *SEGMENTS, *FORWARDER, *SINK),
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
    supervisor: int
    """Its process id."""
    point: Point | None = None
    call: int = 0
    forks: int = 0

    def __str__(self) -> str:
        return f"{self.role} process {self.run}, to die {self.point.name} ({self.call})" if self.point else self.role

    def over(self, word: str) -> bool:
        """The supervisor has said the word, or is gone."""
        return (self.folder / word).exists() or not lives(self.supervisor)


def live(orders: Orders) -> None:
    """The life of a process in its role."""
    logging.basicConfig(filename=orders.folder / "processes.log", level=logging.WARNING)
    logging.getLogger("kafka").setLevel(logging.ERROR)  # it warns of each tenth of a second that a busy machine takes
    if orders.point is not None:
        arm(orders.point, orders.call, orders.folder / "deaths")
    try:
        {"emit": emit, "consume": consume}[orders.role](orders)
    except BaseException:
        logging.exception("%s", orders)
        raise


def arm(point: Point, call: int, deaths: Path) -> None:
    """Replace the point's function by one that kills its process at its `call`-th call (from 1), and notes that."""
    module, _, path = point.target.partition(":")
    *parents, name = path.split(".")
    owner: Any = import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    plain: Callable[..., Any] = getattr(owner, name)
    calls = count(1)
    book = os.open(deaths, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def die() -> None:
        os.write(book, f"{point.name}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)

    @wraps(plain)
    def armed(*arguments: Any, **named: Any) -> Any:
        last = next(calls) >= call
        if last and point.moment == "before":
            die()
        result = plain(*arguments, **named)
        if last:
            die()
        return result

    setattr(owner, name, armed)


def interaction(name: str) -> InteractionRecorded:
    """The event of a name; its texts tell which one it is."""
    run, _, number = name.partition("e")
    process, turn = divmod(int(number), EVENTS_OF_A_FORK)
    return InteractionRecorded(
        interaction_id=f"i{name}",
        conversation_id=f"{run}p{process}c{turn % KEYS}",
        prompt=f"What is in {name}?",
        response=f"Event {number} of run {run}.",
        finish_reason="stop",
    )


def emit(orders: Orders) -> None:
    """Emit until there are enough, write the names of acknowledged events down, and forward until all are sent.

    With `forks` the process has that many children, which use the emitter that it has used already.
    """
    emitter = open_emitter(orders.settings, open_log(orders.settings), source="chaos")
    here = Emitting(emitter, orders, 0)
    here.emit_group()
    for place in range(1, orders.forks + 1):
        if not os.fork():
            Emitting(emitter, orders, place).run()
            os._exit(0)
    here.run()
    with suppress(ChildProcessError):
        while True:
            os.wait()


class Emitting:
    """One process that emits; `place` tells it from those that were forked from the same one."""

    def __init__(self, emitter: Emitter, orders: Orders, place: int) -> None:
        self._emitter = emitter
        self._orders = orders
        self._numbers = count(place * EVENTS_OF_A_FORK)
        self._under_way: deque[list[Receipt]] = deque()
        self._ledger = os.open(orders.folder / "acknowledged", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._sign = orders.folder / f"{EMITTING}{os.getpid()}"
        self._sign.touch()

    def run(self) -> None:
        """See `emit`."""
        while not self._orders.over("enough"):
            held = (self._orders.folder / "hold").exists()
            self.emit_group(4 if held else EVENTS_AT_ONCE)
            if held:
                time.sleep(0.02)
            self._note(0 if held else 3)
        self._note(0)
        self._sign.unlink()
        while not self._orders.over("drained"):
            self._emitter.forward()
            time.sleep(0.05)
        self._emitter.close()

    def emit_group(self, number: int = EVENTS_AT_ONCE) -> None:
        """Emit the next events of this process."""
        names = [f"r{self._orders.run:04d}e{next(self._numbers):08d}" for _ in range(number)]
        self._under_way.append([self._emitter.emit(interaction(name), name) for name in names])

    def _note(self, left: int) -> None:
        while len(self._under_way) > left:
            done = [receipt.event_id for receipt in self._under_way.popleft() if receipt.wait(STUCK_SECONDS)]
            os.write(self._ledger, "".join(f"{name}\n" for name in done).encode())


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


def lives(process: int) -> bool:
    """The process of this id runs."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
