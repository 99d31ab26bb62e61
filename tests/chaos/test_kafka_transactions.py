"""Outputs and offsets stay together while brokers and members are killed: each record is published exactly once."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from multiprocessing.process import BaseProcess

import pytest

from infra.errors import Unavailable
from infra.kafka_broker import KafkaBroker
from infra.settings import Settings
from streams.kafka import KafkaLog
from streams.log import EventLog, LostPartition, Record, lag

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(1200)]
GROUP, SOURCE, OUTPUT = "transform", "source", "output"
SESSION = 2.0
AT_ONCE = 5
PACE = 0.1
"""Seconds between two transactions, so that there is work left at the last kill."""
STUCK = 90.0
"""Seconds without progress that count as standing still."""
_processes = multiprocessing.get_context("forkserver")


def transform(settings: Settings) -> None:
    """Publish an output for each record, as the protocol says: again with the same arguments when it was unclear."""
    log = KafkaLog(settings.log, session_timeout=SESSION)
    while True:
        try:
            with log.join(GROUP, [SOURCE]) as reader:
                while True:
                    batch = reader.poll(max_records=AT_ONCE, timeout=0.5)
                    outputs = [(OUTPUT, Record(each.key, each.value)) for each in batch]
                    offsets = {(each.topic, each.partition): each.offset + 1 for each in batch}
                    while outputs:
                        try:
                            reader.publish(outputs, offsets)
                        except Unavailable:
                            time.sleep(0.2)
                            continue
                        except LostPartition:
                            pass
                        outputs = []
                    time.sleep(PACE)
        except Unavailable:
            time.sleep(0.2)


def published(log: EventLog) -> list[str]:
    found: list[str] = []
    for partition, end in log.end_offsets(OUTPUT).items():
        position = 0
        while position < end and (batch := log.read(OUTPUT, partition, position)):
            found += [each.value.decode() for each in batch]
            position = batch[-1].offset + 1
    return found


def test_each_record_is_published_once_whoever_is_killed(
    on_kafka: Settings, own_broker: KafkaBroker, scale: Callable[[int, int], int]
):
    kills, number = scale(4, 40), scale(600, 6_000)
    chance = random.Random("transactions")
    killed: Counter[str] = Counter()
    names = [f"{index:06}" for index in range(number)]
    members: list[BaseProcess] = []

    def join() -> None:
        member = _processes.Process(target=transform, args=(on_kafka,), daemon=True)
        member.start()
        members.append(member)

    with closing(KafkaLog(on_kafka.log)) as log:
        log.ensure_topics([OUTPUT])
        log.append(SOURCE, [Record(name[-2:], name.encode()) for name in names])
        for _ in range(2):
            join()
        try:
            for index in range(kills):
                time.sleep(chance.uniform(0.5, 3))
                if index % 2:
                    own_broker.kill()
                    own_broker.start()
                    killed["broker"] += 1
                else:
                    members.pop(chance.randrange(len(members))).kill()
                    killed["member"] += 1
                    join()
            behind, moved = number, time.monotonic()
            while behind:
                if (left := _behind(log, behind)) < behind:
                    behind, moved = left, time.monotonic()
                assert time.monotonic() - moved < STUCK, f"{behind} records are left"
                time.sleep(0.2)
        finally:
            for member in members:
                member.kill()
                member.join()
        found = published(log)
    print(
        f"{killed['broker']} kills of the broker and {killed['member']} of members; of {number} records"
        f" {len(set(names) - set(found))} were not published and {len(found) - len(set(found))} more than once"
    )
    assert sorted(found) == names


def _behind(log: EventLog, before: int) -> int:
    try:
        return lag(log, GROUP, SOURCE)
    except Unavailable:
        return before
