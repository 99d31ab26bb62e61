"""The event log against a model in memory: Hypothesis chooses the steps, every answer of the log must be the model's.

The embedded log's members also die and hang, and its records age until they are compacted or past their time.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)
from state_machines import CountedMachine, in_memory, run

from infra.identity import new_id
from infra.kafka_broker import KafkaBroker
from infra.settings import LogSettings
from streams.embedded import EmbeddedLog
from streams.events import CONTENT_DOCUMENTS
from streams.log import EventLog, GroupReader, LostPartition, Record, StoredRecord, lag, partition_of
from streams.retention import SUPERSEDED_FOR, TOMBSTONE_FOR

DAYS = 3
PARTITIONS = 2
AGES = (timedelta(0), SUPERSEDED_FOR, TOMBSTONE_FOR, timedelta(days=DAYS))
STEP = timedelta(seconds=60)
"""More than an example takes: what is older than an age by that much is older than it whenever the log looks."""
KEYS = st.sampled_from(["a", "b", "c", "d", "ключ"])
RECORDS = st.builds(
    Record,
    key=KEYS,
    value=st.sampled_from([b"", b"x", b"\x00\xff"]) | st.binary(min_size=1, max_size=20),
    headers=st.just(()) | st.just((("ce_id", b"1"),)) | st.just((("n", b"\x00"), ("n", b"\xff"))),
)
Name = tuple[str, int]


@dataclass
class Kept:
    """A record of the model."""

    record: Record
    aged: timedelta = timedelta(0)
    time: datetime | None = None


@dataclass(eq=False)
class Member:
    """A member of the model: what it holds, and what it was given of that."""

    group: str
    reader: GroupReader
    positions: dict[Name, int] = field(default_factory=dict)
    """Partition it holds to the next offset it should be given."""
    lost: set[Name] = field(default_factory=set)
    """Partitions it holds for all it knows, but which have gone to others."""
    hung: bool = False
    """Whether the others may take it for dead."""


class LogMachine(CountedMachine):
    """Steps that every log takes."""

    members = Bundle("members")
    exact = True
    """Whether offsets have no gaps of the log's own, and a commit fails only when the partition is lost."""
    at_start: Sequence[int] = (0, 0, 1)
    """Groups of the first members."""
    most = 3
    """Members of a group."""

    def __init__(self) -> None:
        super().__init__()
        self.topics = self.name_topics()
        self.logs = [self.open_log()]
        self.kept: dict[Name, dict[int, Kept]] = {}
        self.ends: dict[Name, int] = {}
        self.committed: dict[tuple[str, Name], int] = {}
        self.alive: list[Member] = []
        self.groups = [f"{group}-{new_id()}" for group in "gh"]

    def name_topics(self) -> list[str]:
        """Two topics nobody used before."""
        raise NotImplementedError

    def open_log(self) -> EventLog:
        """The log, opened anew."""
        raise NotImplementedError

    @property
    def log(self) -> EventLog:
        return self.logs[-1]

    @initialize(target=members)
    def start(self) -> Any:
        self.count("examples")
        self.log.ensure_topics(self.topics)
        for topic in self.topics:
            for number in range(PARTITIONS):
                self.kept[topic, number], self.ends[topic, number] = {}, 0
        for topic in (0, 1):
            self.append(topic=topic, records=[Record(key, b"first") for key in "abcd"])
        return multiple(*[self.joined(group) for group in self.at_start])

    @rule(topic=st.integers(0, 1), records=st.lists(RECORDS, max_size=6))
    def append(self, topic: int, records: Sequence[Record]) -> None:
        self.count("append")
        self.take_in(self.topics[topic], records, self.log.append(self.topics[topic], records))

    @rule(topic=st.integers(0, 1), number=st.integers(0, PARTITIONS), data=st.data())
    def read(self, topic: int, number: int, data: st.DataObject) -> None:
        self.count("read")
        name = (self.topics[topic], number)
        offset = data.draw(st.integers(0, self.ends.get(name, 0) + 1))
        limit = data.draw(st.integers(1, 10))
        wanted = [each for each in sorted(self.kept.get(name, {})) if each >= offset][:limit]
        found = self.log.read(*name, offset, limit=limit)
        assert [each.offset for each in found] == wanted
        self.check(found)

    @rule(topic=st.integers(0, 1), number=st.integers(0, PARTITIONS - 1), data=st.data())
    def seek_a_time(self, topic: int, number: int, data: st.DataObject) -> None:
        self.count("seek a time")
        name = (self.topics[topic], number)
        found = self.log.read(*name, 0, limit=10_000)
        times = [each.time for each in found]
        assert times == sorted(times)
        if times:
            time = data.draw(st.sampled_from(times))
            later = data.draw(st.sampled_from([timedelta(0), timedelta(milliseconds=1), timedelta(days=1)]))
            first = next((each.offset for each in found if each.time >= time + later), None)
            offset = self.log.offsets_at(name[0], time + later)[number]
            assert offset == first if first is not None else offset >= self.ends[name]

    @rule(target=members, group=st.integers(0, 1))
    def join(self, group: int) -> Any:
        if sum(member.group == self.groups[group] for member in self.alive) == self.most:
            return multiple()
        return self.joined(group)

    def joined(self, group: int) -> Member:
        self.count("join")
        member = Member(self.groups[group], self.log.join(self.groups[group], self.topics))
        self.alive.append(member)
        self.assigned(member)
        return member

    @rule(member=members, limit=st.integers(1, 8))
    def poll(self, member: Member, limit: int) -> None:
        if member in self.alive:
            self.count("poll")
            batch = member.reader.poll(max_records=limit, timeout=0.0 if self.exact else 0.3)
            assert len(batch) <= limit
            self.polled(member, batch)

    @rule(member=members, names=st.sets(st.tuples(st.integers(0, 1), st.integers(0, PARTITIONS - 1)), min_size=1))
    def commit(self, member: Member, names: set[tuple[int, int]]) -> None:
        if member in self.alive:
            self.count("commit")
            wanted = {(self.topics[topic], number) for topic, number in names}
            offsets = {name: member.positions.get(name, 1) for name in wanted}
            self.move(member, offsets, lambda: member.reader.commit(offsets))

    @rule(member=members, topic=st.integers(0, 1), records=st.lists(RECORDS, max_size=3))
    def publish(self, member: Member, topic: int, records: Sequence[Record]) -> None:
        if member in self.alive and member.positions:
            self.count("publish")
            outputs = [(self.topics[topic], record) for record in records]
            before = self.log.end_offsets(self.topics[topic])
            if self.move(member, dict(member.positions), lambda: member.reader.publish(outputs, member.positions)):
                self.find_outputs(self.topics[topic], records, before)
            elif self.exact:
                assert self.log.end_offsets(self.topics[topic]) == before

    @rule(member=consumes(members))
    def leave(self, member: Member) -> None:
        if member in self.alive:
            self.count("leave")
            self.alive.remove(member)
            member.reader.close()

    @rule(group=st.integers(0, 1))
    def drain(self, group: int) -> None:
        """Live members together get everything that is left, and commit it."""
        members = [member for member in self.alive if member.group == self.groups[group]]
        for _ in range(200 if members else 0):
            for member, batch in zip(members, self.poll_all(members), strict=True):
                self.polled(member, batch)
                offsets = dict(member.positions)
                if offsets:
                    self.move(member, offsets, lambda member=member, offsets=offsets: member.reader.commit(offsets))
            held = [name for member in members for name in member.positions]
            if sorted(held) == sorted(self.ends) and self.drained(self.groups[group]):
                self.count("drain")
                return
        assert not members, (held, self.committed, self.ends)

    @invariant()
    def group_state_is_the_models(self) -> None:
        for topic in self.topics if self.kept else ():
            ends = self.log.end_offsets(topic)
            assert sorted(ends) == list(range(PARTITIONS))
            for number, end in ends.items():
                model = self.ends[topic, number]
                assert end == model if self.exact else end >= model
                self.ends[topic, number] = end
            for group in self.groups:
                committed = {number: self.expected(group, (topic, number)) for number in range(PARTITIONS)}
                assert self.log.committed(group, topic) == committed

    def teardown(self) -> None:
        for member in self.alive:
            member.reader.close()
        for log in self.logs:
            log.close()

    def take_in(self, topic: str, records: Sequence[Record], places: Sequence[tuple[int, int]]) -> None:
        """Note what was appended, and check where it went."""
        assert len(places) == len(records)
        for (number, offset), record in zip(places, records, strict=True):
            assert number == partition_of(record.key, PARTITIONS)
            end = self.ends[topic, number]
            assert offset == end if self.exact else offset >= end
            self.kept[topic, number][offset] = Kept(record)
            self.ends[topic, number] = offset + 1

    def find_outputs(self, topic: str, records: Sequence[Record], before: dict[int, int]) -> None:
        """Where published records went: behind what was there, in their order."""
        for number, start in before.items():
            wanted = [record for record in records if partition_of(record.key, PARTITIONS) == number]
            found = self.log.read(topic, number, start, limit=100)
            self.take_in(topic, wanted, [(number, each.offset) for each in found])
            self.check(found)

    def check(self, found: Sequence[StoredRecord]) -> None:
        """These records are the model's, as they were appended."""
        for each in found:
            model = self.kept[each.topic, each.partition][each.offset]
            assert (each.key, each.value, each.headers) == (model.record.key, model.record.value, model.record.headers)

    def poll_all(self, members: Sequence[Member]) -> list[list[StoredRecord]]:
        return [member.reader.poll(max_records=100, timeout=0.0) for member in members]

    def polled(self, member: Member, batch: Sequence[StoredRecord]) -> None:
        self.assigned(member)
        self.check(batch)
        for name in {(each.topic, each.partition) for each in batch}:
            assert name in member.positions
            self.given(member, name, [each.offset for each in batch if (each.topic, each.partition) == name])

    def assigned(self, member: Member) -> None:
        """Note what a member holds now; what is new to it starts where its group is."""
        assignment = member.reader.assignment()
        new = assignment - set(member.positions) | assignment & member.lost
        member.positions = {
            name: self.expected(member.group, name) if name in new else member.positions[name] for name in assignment
        }
        member.lost.clear()
        for other in self.alive:
            if other is not member and other.group == member.group:
                both = (set(other.positions) if self.exact else other.reader.assignment()) & assignment - other.lost
                assert other.hung or not both, (both, "belong to two members")
                other.lost |= both

    def given(self, member: Member, name: Name, offsets: list[int]) -> None:
        starts = {member.positions[name]} if self.exact else {member.positions[name], self.expected(member.group, name)}
        wanted = [[each for each in sorted(self.kept[name]) if each >= start][: len(offsets)] for start in starts]
        assert offsets in wanted
        member.positions[name] = offsets[-1] + 1

    def move(self, member: Member, offsets: dict[Name, int], attempt: Callable[[], None]) -> bool:
        """Commit in one way or another; False when the log refused."""
        lost = [name for name in offsets if name not in member.positions or name in member.lost]
        try:
            attempt()
        except LostPartition:
            assert lost or not self.exact
            for name in offsets if self.exact else ():
                # What it lost is known to it now, and may be more than what it was told of.
                if name not in member.reader.assignment():
                    member.positions.pop(name, None)
                    member.lost.discard(name)
            return False
        assert not lost
        for name, offset in offsets.items():
            self.committed[member.group, name] = offset
        return True

    def expected(self, group: str, name: Name) -> int:
        """The offset that a group goes on at."""
        first = min(self.kept[name], default=self.ends[name]) if self.exact else 0
        return max(first, self.committed.get((group, name), 0))

    def drained(self, group: str) -> bool:
        """Whether a group has committed everything."""
        done = all(
            self.expected(group, name) > max(self.kept[name], default=-1) or not self.kept[name] for name in self.kept
        )
        if done and self.exact:
            assert sum(lag(self.log, group, topic) for topic in self.topics) == 0
        return done


class EmbeddedMachine(LogMachine):
    """The embedded log: members die and hang, records age."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="quill-log-", dir=in_memory())
        self.path = Path(self.folder.name) / "log.db"
        super().__init__()

    def name_topics(self) -> list[str]:
        return ["llm.interactions", CONTENT_DOCUMENTS]

    def open_log(self) -> EventLog:
        return EmbeddedLog(self.path, partitions=PARTITIONS, retention_days=DAYS, session_timeout=1000)

    @rule(member=consumes(LogMachine.members))
    def die(self, member: Member) -> None:
        """The process of a member is gone: it says nothing more."""
        if member in self.alive:
            self.count("die")
            self.alive.remove(member)
            self.expire(member)

    @rule(member=LogMachine.members)
    def hang(self, member: Member) -> None:
        """A member's heartbeat stays away until its next poll."""
        if member in self.alive:
            self.count("hang")
            self.expire(member)
            member.hung = True

    @rule()
    def another_process(self) -> None:
        """From here on the log is used through connections of their own; the members keep theirs."""
        self.count("another process")
        self.logs.append(self.open_log())

    @rule(by=st.sampled_from(AGES))
    def grow_old(self, by: timedelta) -> None:
        self.count("clean")
        by += STEP
        self.execute("UPDATE records SET time = time - ?", by // timedelta(microseconds=1))
        self.execute("UPDATE newest SET tombstone = tombstone - ?", by // timedelta(microseconds=1))
        for records in self.kept.values():
            for each in records.values():
                each.aged += by
        assert isinstance(self.log, EmbeddedLog)
        while self.log.clean():
            self.count("steps of cleaning")
        for (topic, number), records in self.kept.items():
            self.kept[topic, number] = self.compacted(records) if topic == CONTENT_DOCUMENTS else self.young(records)

    def young(self, records: dict[int, Kept]) -> dict[int, Kept]:
        return {offset: each for offset, each in records.items() if each.aged < timedelta(days=DAYS)}

    def compacted(self, records: dict[int, Kept]) -> dict[int, Kept]:
        newest = {each.record.key: offset for offset, each in records.items() if each.aged >= SUPERSEDED_FOR}
        return {
            offset: each
            for offset, each in records.items()
            if each.aged < SUPERSEDED_FOR
            or (
                newest[each.record.key] == offset
                and (each.record.value or each.aged < TOMBSTONE_FOR or offset == max(records))
            )
        }

    def polled(self, member: Member, batch: Sequence[StoredRecord]) -> None:
        member.hung = False
        super().polled(member, batch)

    def expire(self, member: Member) -> None:
        self.execute("UPDATE members SET heartbeat = heartbeat - 10000 WHERE id = ?", member.reader.member)

    def execute(self, statement: str, value: object) -> None:
        with closing(sqlite3.connect(self.path, timeout=30)) as connection:
            connection.execute(statement, (value,))
            connection.commit()

    def teardown(self) -> None:
        super().teardown()
        assert sqlite3.connect(self.path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
        self.folder.cleanup()


def test_the_embedded_log_does_what_the_model_does(scale):
    counts = run(EmbeddedMachine, scale(50, 1500), scale(40, 60))
    steps = ("append", "commit", "publish", "drain", "die", "hang", "clean")
    assert all(counts[step] for step in steps)


@pytest.mark.kafka
@pytest.mark.timeout(1800)
def test_kafka_does_what_the_model_does(scale, kafka_broker: KafkaBroker):
    from streams.kafka import KafkaLog

    class KafkaMachine(LogMachine):
        exact = False
        at_start = (0,)
        most = 2

        def poll_all(self, members: Sequence[Member]) -> list[list[StoredRecord]]:
            # At once, as their processes do: a rebalance waits for all of them.
            with ThreadPoolExecutor(2) as pool:
                return list(pool.map(lambda member: member.reader.poll(max_records=100, timeout=1.0), members))

        def name_topics(self) -> list[str]:
            return [f"machine.{new_id()}", f"machine.{new_id()}"]

        def open_log(self) -> EventLog:
            return KafkaLog(LogSettings(bootstrap_servers=kafka_broker.address, partitions=PARTITIONS))

    counts = run(KafkaMachine, scale(4, 40), scale(20, 40))
    assert all(counts[step] for step in ("append", "join", "drain"))
