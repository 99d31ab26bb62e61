"""The processes of `benchmarks.pipeline`: one emits, one stores. They take orders and answer in JSON lines.

Times are of `time.monotonic`, which all processes of one machine share.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from infra.identity import new_id
from infra.settings import DatabaseSettings, LogSettings, Settings
from store.opening import open_store
from streams.codec import encode
from streams.consumer import DELAYS, Batched, Consumer
from streams.emitter import Emitter, Receipt
from streams.events import LLM_INTERACTIONS, Event, InteractionRecorded
from streams.log import EventLog, StoredRecord
from streams.masking import Masked, Masker
from streams.opening import open_log

AHEAD = 4000
"""Events emitted before the receipt of the first of them is waited for; the emitter takes 10,000."""


class Unmasked(Masker):
    """Leaves texts as they are: what the same pipeline does without masking."""

    def mask(self, text: str) -> Masked:
        """The text."""
        return Masked(text=text, spans=())

    def mask_id(self, name: str) -> str:
        """The name."""
        return name


def settings(address: str, home: Path, database: str) -> Settings:
    """Of a new installation on the broker."""
    log = LogSettings(backend="kafka", bootstrap_servers=address)
    return Settings(home=home, log=log, database=DatabaseSettings(url=database))


def interactions(prefix: str, number: int, size: int) -> list[InteractionRecorded]:
    """Interactions whose encoded value is `size` bytes long: a quarter prompt, the rest response, words."""
    chance = random.Random("pipeline")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 10))) for _ in range(3000)]
    made: list[InteractionRecorded] = []
    for index in range(number):
        text = " ".join(chance.choices(words, k=size // 5))
        name = f"{prefix}-{index:06}"
        empty = InteractionRecorded(
            interaction_id=name, conversation_id=f"c{index % 500}", prompt="", response="", finish_reason="stop"
        )
        room = size - len(encode(Event(data=empty)).value)
        made.append(empty.model_copy(update={"prompt": text[: room // 4], "response": text[room // 4 : room]}))
    return made


def emit(address: str, home: Path, database: str, size: int, masked: bool) -> None:
    """Order: [prefix, number]. Answer: when the first was emitted, all were acknowledged, all were in the log."""
    log = open_log(settings(address, home, database))
    masker = Masker() if masked else Unmasked()
    emitter = Emitter(log, masker=masker, outbox=home / "outbox", source="benchmark")
    for prefix, number in orders():
        events = interactions(prefix, number, size)
        started = time.monotonic()
        receipts = list(_emitted(emitter, events))
        if not all(receipt.wait(60) for receipt in receipts):
            sys.exit(f"not acknowledged: {next(each.reason for each in receipts if each.reason)}")
        acknowledged = time.monotonic()
        if not emitter.flush(120):
            sys.exit("the outbox was not forwarded within 120 s")
        answer(started=started, acknowledged=acknowledged, forwarded=time.monotonic())
    emitter.close()


def store(address: str, home: Path, database: str, size: int, masked: bool) -> None:
    """Says that it is ready. Order: [prefix, number]. Answer: when the last of so many more events was committed."""
    del size, masked
    opened = settings(address, home, database)
    log, records = open_log(opened), open_store(opened)
    changed = threading.Condition()
    stored = 0

    def handle(events: Sequence[tuple[Event, StoredRecord]]) -> None:
        nonlocal stored
        new = records.interactions.put_many([event for event, _ in events])
        with changed:
            stored += new
            changed.notify_all()

    group = new_id()
    skip(log, group)
    consumer = Consumer(log, group, {LLM_INTERACTIONS: Batched(handle)}, delays=DELAYS)
    stop = threading.Event()
    thread = threading.Thread(target=consumer.run, args=(stop,))
    thread.start()
    answer(ready=time.monotonic())
    wanted = 0
    for _, number in orders():
        wanted += number
        with changed:
            if not changed.wait_for(lambda: stored >= wanted, 300):  # noqa: B023 - waited for here
                sys.exit(f"stored {stored} of {wanted} events within 300 s")
        answer(stored=time.monotonic())
    if records.interactions.count() != wanted:
        sys.exit(f"{records.interactions.count()} of {wanted} events are in the store")
    stop.set()
    thread.join(30)
    records.close()


def skip(log: EventLog, group: str) -> None:
    """Let the group begin at the present end of the topic: what is there is another run's."""
    with log.join(group, [LLM_INTERACTIONS]) as reader:
        while len(reader.assignment()) < log.partitions(LLM_INTERACTIONS):
            reader.poll(max_records=1, timeout=0.1)
        ends = log.end_offsets(LLM_INTERACTIONS)
        reader.commit({(LLM_INTERACTIONS, partition): end for partition, end in ends.items()})


def orders() -> Iterator[tuple[str, int]]:
    """Until stdin ends."""
    for line in sys.stdin:
        yield json.loads(line)


def answer(**values: float) -> None:
    """One line."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _emitted(emitter: Emitter, events: Sequence[InteractionRecorded]) -> Iterator[Receipt]:
    receipts: list[Receipt] = []
    for number, event in enumerate(events):
        if number >= AHEAD:
            receipts[number - AHEAD].wait(60)
        receipts.append(emitter.emit(event))
        yield receipts[-1]


def main(arguments: Sequence[str]) -> None:
    """ROLE ADDRESS HOME DATABASE SIZE on|off"""
    role, address, home, database, size, masking = arguments
    {"emit": emit, "store": store}[role](address, Path(home), database, int(size), masking == "on")


if __name__ == "__main__":
    main(sys.argv[1:])
