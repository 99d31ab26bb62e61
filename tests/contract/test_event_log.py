"""The promises of `streams.log`, kept by the embedded log and by a real Kafka broker alike."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from infra.errors import InputError, Unavailable
from infra.identity import new_id
from infra.kafka_broker import KafkaBroker
from infra.settings import LogSettings
from streams.embedded import EmbeddedLog
from streams.frames import SLOTS, count
from streams.log import (
    MAX_RECORD_BYTES,
    EventLog,
    GroupReader,
    LostPartition,
    Record,
    StoredRecord,
    lag,
    partition_of,
    retry_topic,
)

SESSION = 1.5
"""Short, so that a dead member is noticed within the test."""
PATIENCE = 30.0


def record(key: str, text: str) -> Record:
    return Record(key=key, value=text.encode())


def everything(log: EventLog, topic: str) -> list[StoredRecord]:
    return [each for partition in log.end_offsets(topic) for each in log.read(topic, partition, 0, limit=100_000)]


def poll_until(readers: list[GroupReader], done: Callable[[], bool], *, commit: bool = True) -> list[StoredRecord]:
    """Poll each reader in a thread of its own, as live consumers do, until `done`."""
    finished = threading.Event()
    with ThreadPoolExecutor(len(readers)) as pool:
        loops = [pool.submit(_poll_on, reader, finished, commit) for reader in readers]
        deadline = time.monotonic() + PATIENCE
        while not done() and time.monotonic() < deadline:
            time.sleep(0.02)
        finished.set()
        found = [each for loop in loops for each in loop.result()]
    assert done(), [reader.assignment() for reader in readers]
    return found


def _poll_on(reader: GroupReader, finished: threading.Event, commit: bool) -> list[StoredRecord]:
    found: list[StoredRecord] = []
    while not finished.is_set():
        batch = reader.poll(timeout=0.2)
        found += batch
        if commit and batch:
            reader.commit({(each.topic, each.partition): each.offset + 1 for each in batch})
    return found


class EventLogSuite:
    """Inherited by each backend. `open_log` opens it; `opening` is the same as source text for another process."""

    opening: str
    killing: str
    """Source text for another process: from here on it kills itself before its transaction ends, all else done."""

    @pytest.fixture
    def open_log(self) -> Callable[[], EventLog]:
        raise AssertionError("the backend gives it")

    @pytest.fixture
    def log(self, open_log: Callable[[], EventLog]) -> Iterator[EventLog]:
        log = open_log()
        yield log
        log.close()

    @pytest.fixture
    def topic(self) -> str:
        return f"suite.{new_id()}"

    def child(self, body: str, *arguments: str) -> subprocess.Popen[str]:
        program = f"import sys, time\n{self.opening}\n{textwrap.dedent(body)}"
        return subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)

    def test_what_was_appended_is_there_after_reopening(self, log: EventLog, open_log, topic: str):
        headers = (("ce_id", b"\x00\xff e"), ("ce_id", "ü".encode()))
        sent = [Record(key="k", value=bytes(range(256)), headers=headers), record("k", ""), record("ключ", "x")]
        places = log.append(topic, sent)
        log.close()
        again = open_log()
        stored = {(each.partition, each.offset): each for each in everything(again, topic)}
        again.close()
        assert len(stored) == 3
        for place, each in zip(places, sent, strict=True):
            assert Record(stored[place].key, stored[place].value, stored[place].headers) == each
            assert abs(stored[place].time - datetime.now(UTC)) < timedelta(minutes=1)

    def test_topics_are_made_once_and_keep_their_partitions(self, log: EventLog, topic: str):
        assert log.partitions(topic) == 0
        assert log.end_offsets(topic) == {}
        log.ensure_topics([topic, topic + ".b"])
        log.ensure_topics([topic])
        assert log.partitions(topic) == 3
        assert log.end_offsets(topic) == {0: 0, 1: 0, 2: 0}

    def test_one_key_keeps_its_partition_and_its_order(self, log: EventLog, topic: str):
        keys = [f"key-{index}" for index in range(12)]
        for turn in range(5):
            places = log.append(topic, [record(key, str(turn)) for key in keys])
            assert [partition for partition, _ in places] == [partition_of(key, 3) for key in keys]
        stored = everything(log, topic)
        assert len(stored) == 60
        assert len({each.partition for each in stored}) == 3
        for key in keys:
            assert [each.value for each in stored if each.key == key] == [b"0", b"1", b"2", b"3", b"4"]

    def test_reading_goes_from_an_offset_to_a_limit_without_a_group(self, log: EventLog, topic: str):
        offsets = [offset for _, offset in log.append(topic, [record("k", str(index)) for index in range(10)])]
        partition = partition_of("k", 3)
        found = log.read(topic, partition, offsets[4], limit=3)
        assert [(each.offset, each.value) for each in found] == list(zip(offsets[4:7], (b"4", b"5", b"6"), strict=True))
        assert log.read(topic, partition, offsets[9] + 1) == []
        assert log.read(topic, (partition + 1) % 3, 0) == []
        assert log.end_offsets(topic)[partition] == offsets[9] + 1
        assert log.count(topic, partition, offsets[4], offsets[9] + 1) == 6

    def test_a_time_leads_to_the_first_record_at_or_after_it(self, log: EventLog, topic: str):
        partition = partition_of("k", 3)
        for index in range(3):
            log.append(topic, [record("k", f"{index}"), record("k", f"{index}.")])
            time.sleep(0.02)
        found = log.read(topic, partition, 0)
        times = [each.time for each in found]
        assert times == sorted(times)

        def after(moment: datetime) -> list[bytes]:
            return [each.value for each in log.read(topic, partition, log.offsets_at(topic, moment)[partition])]

        assert log.offsets_at(topic, times[0] - timedelta(hours=1)) == {0: 0, 1: 0, 2: 0}
        assert after(times[2]) == [b"1", b"1.", b"2", b"2."]
        assert after(times[2] + timedelta(milliseconds=5)) == [b"2", b"2."]
        assert log.offsets_at(topic, times[4] + timedelta(hours=1)) == log.end_offsets(topic)

    def test_a_group_starts_at_the_beginning_and_goes_on_where_it_committed(self, log: EventLog, topic: str):
        log.append(topic, [record(f"k{index}", str(index)) for index in range(20)])
        group = new_id()
        assert log.committed(group, topic) == {0: 0, 1: 0, 2: 0}
        first: list[StoredRecord] = []
        with log.join(group, [topic]) as reader:
            first += poll_until([reader], lambda: lag(log, group, topic) == 0)
        assert sorted(int(each.value) for each in first) == list(range(20))
        assert log.committed(group, topic) == log.end_offsets(topic)
        log.append(topic, [record("k0", "new")])
        with log.join(group, [topic]) as reader:
            assert [each.value for each in poll_until([reader], lambda: lag(log, group, topic) == 0)] == [b"new"]

    def test_what_was_not_committed_comes_again(self, log: EventLog, topic: str):
        log.append(topic, [record("k", "a"), record("k", "b")])
        group = new_id()
        seen: list[StoredRecord] = []
        with log.join(group, [topic]) as reader:
            while len(seen) < 2:
                seen += reader.poll(timeout=1.0)
            reader.commit({(topic, seen[0].partition): seen[0].offset + 1})
        with log.join(group, [topic]) as reader:
            again = poll_until([reader], lambda: lag(log, group, topic) == 0)
        assert [each.value for each in again] == [b"b"]

    def test_a_commit_and_a_read_may_lie_between_any_two_records(self, log: EventLog, topic: str):
        places = log.append(topic, [record("k", str(index)) for index in range(20)])
        partition, group = places[0][0], new_id()
        for done in (7, 8, 20):
            with log.join(group, [topic]) as reader:
                batch: list[StoredRecord] = []
                while len(batch) < 5 and done < 20:
                    batch += reader.poll(timeout=1.0, max_records=5)
                    assert len(batch) <= 5
                poll_until([reader], lambda: (topic, partition) in reader.assignment(), commit=False)
                reader.commit({(topic, partition): places[done - 1][1] + 1})
            assert lag(log, group, topic) == 20 - done
            left = log.read(topic, partition, log.committed(group, topic)[partition])
            assert [each.value for each in left] == [str(index).encode() for index in range(done, 20)]
            assert [(each.partition, each.offset) for each in left] == places[done:]
            with log.join(group, [topic]) as reader:
                again = [] if done == 20 else reader.poll(timeout=10.0) or reader.poll(timeout=10.0)
            assert [each.value for each in again] == [str(index).encode() for index in range(done, 20)]

    def test_members_share_the_partitions_and_a_leaver_frees_its_own(self, log: EventLog, topic: str):
        log.ensure_topics([topic])
        group = new_id()
        whole = {(topic, 0), (topic, 1), (topic, 2)}
        with log.join(group, [topic]) as first:
            poll_until([first], lambda: first.assignment() == whole)
            second = log.join(group, [topic])
            poll_until([first, second], lambda: {len(first.assignment()), len(second.assignment())} == {1, 2})
            assert first.assignment() | second.assignment() == whole
            log.append(topic, [record(f"k{index}", str(index)) for index in range(30)])
            found = poll_until([first, second], lambda: lag(log, group, topic) == 0)
            assert sorted(int(each.value) for each in found) == list(range(30))
            second.close()
            second.close()
            poll_until([first], lambda: first.assignment() == whole)

    def test_a_killed_member_frees_its_partitions_and_its_uncommitted_records(self, log: EventLog, topic: str):
        log.append(topic, [record(f"k{index}", str(index)) for index in range(9)])
        group = new_id()
        body = """
            reader = log.join(sys.argv[1], [sys.argv[2]])
            seen = []
            while len(seen) < 9:
                seen += reader.poll(timeout=0.5)
            print("handled", flush=True)
            while True:
                reader.poll(timeout=0.1)
        """
        child = self.child(body, group, topic)
        assert child.stdout is not None
        assert child.stdout.readline() == "handled\n"
        child.kill()
        child.wait()
        with log.join(group, [topic]) as reader:
            found = poll_until([reader], lambda: lag(log, group, topic) == 0)
        assert sorted(int(each.value) for each in found) == list(range(9))

    def test_a_member_that_hung_cannot_commit_any_more(self, log: EventLog, open_log, topic: str):
        log.append(topic, [record("k", "a"), record("k", "b")])
        group = new_id()
        hung = log.join(group, [topic])
        batch: list[StoredRecord] = []
        while not batch:
            batch = hung.poll(timeout=0.5)
        partition = batch[0].partition
        with open_log().join(group, [topic]) as other:
            poll_until([other], lambda: (topic, partition) in other.assignment(), commit=False)
            offset = batch[0].offset
            other.commit({(topic, partition): offset + 2})
            with pytest.raises(LostPartition, match="no longer owns"):
                hung.commit({(topic, partition): offset + 1})
            assert log.committed(group, topic)[partition] == offset + 2
        hung.close()

    def test_nobody_commits_a_partition_that_is_not_theirs(self, log: EventLog, topic: str):
        log.ensure_topics([topic, topic + ".b"])
        with log.join(new_id(), [topic]) as reader:
            poll_until([reader], lambda: len(reader.assignment()) == 3)
            with pytest.raises(LostPartition):
                reader.commit({(topic + ".b", 0): 1})

    def test_the_retry_topic_belongs_to_whoever_owns_the_partition_it_retries(
        self, log: EventLog, open_log, topic: str
    ):
        group = new_id()
        beside = retry_topic(topic, group)
        log.ensure_topics([topic, beside])
        log.append(beside, [record(f"k{index}", str(index)) for index in range(30)])
        hung = log.join(group, [topic])
        while len(hung.assignment()) < 3:
            assert hung.poll(timeout=0.2) == []  # a retry topic is not handed out
        hung.commit({(topic, 0): 0, (beside, 0): 4, (beside, 1): 2})
        assert log.committed(group, beside) == {0: 4, 1: 2, 2: 0}
        with pytest.raises(LostPartition):
            hung.commit({(retry_topic(topic, "another"), 0): 1})
        with open_log().join(group, [topic]) as other:
            poll_until([other], lambda: (topic, 0) in other.assignment(), commit=False)
            other.commit({(beside, 0): 5})
            with pytest.raises(LostPartition, match="no longer owns"):
                hung.commit({(beside, 0): 3})
            assert log.committed(group, beside)[0] == 5
        hung.close()

    def test_outputs_and_offsets_are_published_together(self, log: EventLog, topic: str):
        log.append(topic, [record(f"k{index}", str(index)) for index in range(10)])
        group, outputs = new_id(), (f"{topic}.a", f"{topic}.b")
        with log.join(group, [topic]) as reader:
            while lag(log, group, topic):
                batch = reader.poll(timeout=1.0)
                if batch:
                    sent = [(name, Record(each.key, each.value.upper())) for each in batch for name in outputs]
                    reader.publish(sent, {(each.topic, each.partition): each.offset + 1 for each in batch})
            reader.publish([], {})
        for name in outputs:
            assert sorted(int(each.value) for each in everything(log, name)) == list(range(10))
            assert {each.partition for each in everything(log, name)} == {
                each.partition for each in everything(log, topic)
            }
        # What ends a transaction in the log counts as read too: the outputs' own readers come to the end.
        with log.join(group, list(outputs)) as reader:
            found = poll_until([reader], lambda: lag(log, group, outputs[0]) == lag(log, group, outputs[1]) == 0)
        assert len(found) == 20

    def test_a_refused_output_publishes_nothing(self, log: EventLog, topic: str):
        log.append(topic, [record("k", "a")])
        group = new_id()
        with log.join(group, [topic]) as reader:
            batch = poll_until([reader], lambda: bool(reader.assignment()), commit=False) or reader.poll(timeout=5)
            offsets = {(topic, batch[0].partition): batch[0].offset + 1}
            with pytest.raises(InputError, match="too long"):
                reader.publish([(topic, record("k", "b")), (topic, Record("k", bytes(MAX_RECORD_BYTES + 1)))], offsets)
            assert lag(log, group, topic) == 1
            reader.publish([(topic, record("k", "b"))], offsets)
        assert sorted(each.value for each in everything(log, topic)) == [b"a", b"b"]

    def test_a_member_that_hung_cannot_publish_and_reads_what_it_keeps_again(self, log: EventLog, open_log, topic: str):
        log.append(topic, [record(f"k{index}", str(index)) for index in range(30)])
        group, output = new_id(), f"{topic}.out"
        hung = log.join(group, [topic])
        batch: list[StoredRecord] = []
        while len(batch) < 30:
            batch += hung.poll(timeout=0.5)
        offsets = {(each.topic, each.partition): each.offset + 1 for each in batch}
        with open_log().join(group, [topic]) as other:
            # It takes over all or some of the partitions, while the first does nothing but hang.
            poll_until([other], lambda: bool(other.assignment()), commit=False)
            with pytest.raises(LostPartition, match="no longer owns"):
                hung.publish([(output, record("k", "zombie"))], offsets)
        assert everything(log, output) == []
        # The other left without a commit: all that the zombie could not publish comes to it once more.
        again = poll_until([hung], lambda: lag(log, group, topic) == 0)
        hung.close()
        assert sorted(int(each.value) for each in again) == list(range(30))

    def test_a_kill_inside_a_transaction_leaves_neither_outputs_nor_offsets(self, log: EventLog, topic: str):
        log.append(topic, [record("k", str(index)) for index in range(5)])
        group, output = new_id(), f"{topic}.out"
        log.ensure_topics([output])
        body = f"""
            from streams.log import Record
            reader = log.join(sys.argv[1], [sys.argv[2]])
            batch = []
            while len(batch) < 5:
                batch += reader.poll(timeout=0.5)
            outputs = [(sys.argv[3], Record(each.key, each.value)) for each in batch]
            offsets = {{(each.topic, each.partition): each.offset + 1 for each in batch}}
            {self.killing}
            reader.publish(outputs, offsets)
        """
        child = self.child(body, group, topic, output)
        child.communicate(timeout=60)
        assert child.returncode == -signal.SIGKILL
        assert lag(log, group, topic) == 5
        with log.join(group, [topic]) as reader:
            batch = []
            while len(batch) < 5:
                batch += reader.poll(timeout=1.0)
            assert everything(log, output) == []
            sent = [(output, Record(each.key, each.value)) for each in batch]
            reader.publish(sent, {(each.topic, each.partition): each.offset + 1 for each in batch})
        assert [each.value for each in everything(log, output)] == [b"0", b"1", b"2", b"3", b"4"]
        assert lag(log, group, topic) == 0

    def test_two_processes_append_at_once_without_loss_or_double_offsets(self, log: EventLog, topic: str):
        log.ensure_topics([topic])
        body = """
            from streams.log import Record
            for turn in range(40):
                names = [f"{sys.argv[2]}/{turn}/{index}" for index in range(5)]
                sent = [Record(key=name, value=name.encode()) for name in names]
                for partition, offset in log.append(sys.argv[1], sent):
                    print(partition, offset)
        """
        children = [self.child(body, topic, name) for name in ("left", "right")]
        places = [line for child in children for line in child.communicate(timeout=60)[0].splitlines()]
        assert [child.returncode for child in children] == [0, 0]
        assert len(places) == len(set(places)) == 400
        stored = everything(log, topic)
        assert {f"{each.partition} {each.offset}" for each in stored} == set(places)
        expected = {f"{name}/{turn}/{index}" for name in ("left", "right") for turn in range(40) for index in range(5)}
        assert {each.value.decode() for each in stored} == expected

    def test_long_records_go_through_and_longer_ones_are_refused(self, log: EventLog, topic: str):
        body = new_id() * (1 << 17)
        log.append(topic, [record("k", body)])
        assert everything(log, topic)[0].value == body.encode()
        with pytest.raises(InputError, match="too long"):
            log.append(topic, [record("k", "small"), Record(key="k", value=bytes(MAX_RECORD_BYTES + 1))])
        with pytest.raises(InputError, match="topic name"):
            log.append("no such/topic", [record("k", "a")])
        assert len(everything(log, topic)) == 1

    def test_reading_goes_on_at_the_first_record_that_is_left(self, log: EventLog, forget, topic: str):
        places = [log.append(topic, [record("k", text)])[0] for text in "abcde"]
        partition, group = places[0][0], new_id()
        with log.join(group, [topic]) as reader:
            poll_until([reader], lambda: len(reader.assignment()) == 3, commit=False)
            reader.commit({(topic, partition): places[1][1]})
        assert lag(log, group, topic) == 4
        forget(topic, partition, places[3][1])
        assert [each.value for each in log.read(topic, partition, 0)] == [b"d", b"e"]
        assert places[2][1] < log.offsets_at(topic, datetime.now(UTC) - timedelta(days=9))[partition] <= places[3][1]
        for each in (group, new_id()):
            assert places[2][1] < log.committed(each, topic)[partition] <= places[3][1]
            assert lag(log, each, topic) == 2
            with log.join(each, [topic]) as reader:
                found = poll_until([reader], lambda each=each: lag(log, each, topic) == 0)
            assert [each.value for each in found] == [b"d", b"e"]
        last = new_id()
        forget(topic, partition, places[4][1] + 1)
        assert lag(log, last, topic) == 0
        assert log.committed(last, topic) == log.end_offsets(topic)
        assert log.append(topic, [record("k", "f")])[0] > places[4]
        assert [each.value for each in log.read(topic, partition, 0)] == [b"f"]

    def test_nothing_appended_is_nothing_done(self, log: EventLog, topic: str):
        assert log.append(topic, []) == []


class TestEmbeddedLog(EventLogSuite):
    killing = (
        "import os, signal; from streams.embedded import EmbeddedLog; append = log._append; "
        "reader._append = lambda *each: (append(*each), os.kill(os.getpid(), signal.SIGKILL))"
    )

    @pytest.fixture
    def open_log(self, tmp_path: Path) -> Callable[[], EventLog]:
        path = tmp_path / "log.db"
        self.opening = (
            f"from pathlib import Path\nfrom streams.embedded import EmbeddedLog\n"
            f"log = EmbeddedLog(Path({str(path)!r}), session_timeout={SESSION})"
        )
        return lambda: EmbeddedLog(path, session_timeout=SESSION, max_poll_interval=SESSION)

    @pytest.fixture
    def forget(self, tmp_path: Path) -> Callable[[str, int, int], None]:
        path = tmp_path / "log.db"

        def age_and_clean(topic: str, partition: int, offset: int) -> None:
            with closing(sqlite3.connect(path)) as connection:
                connection.execute(
                    'UPDATE records SET time = 0 WHERE "offset" < ? AND partition ='
                    " (SELECT id FROM partitions WHERE topic = ? AND number = ?)",
                    (offset, topic, partition),
                )
                connection.commit()
            with closing(EmbeddedLog(path, retention_days=1)) as log:
                while log.clean():
                    pass

        return age_and_clean

    def test_constructing_touches_no_disk(self, tmp_path: Path):
        EmbeddedLog(tmp_path / "never" / "log.db")
        assert not (tmp_path / "never").exists()

    def test_a_file_that_is_no_database_is_named(self, tmp_path: Path):
        path = tmp_path / "log.db"
        path.write_bytes(b"not a database" * 1000)
        with pytest.raises(Exception, match=r"event log is damaged.*log\.db"):
            EmbeddedLog(path).append("t", [record("k", "a")])

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path: Path):
        (tmp_path / "file").touch()
        with pytest.raises(Unavailable, match="event log cannot be opened"):
            EmbeddedLog(tmp_path / "file" / "log.db").partitions("t")


@pytest.mark.kafka
class TestKafkaLog(EventLogSuite):
    killing = (
        "import os, signal; from kafka import KafkaProducer; "
        "KafkaProducer.commit_transaction = lambda self: os.kill(os.getpid(), signal.SIGKILL)"
    )

    frames = False

    @pytest.fixture
    def open_log(self, kafka_broker: KafkaBroker, topic: str) -> Iterator[Callable[[], EventLog]]:
        from streams.kafka import KafkaLog

        settings = LogSettings(bootstrap_servers=kafka_broker.address, frames=self.frames)
        framable = frozenset({topic, f"{topic}.a", f"{topic}.b", f"{topic}.out"} if self.frames else ())
        self.opening = (
            "from infra.settings import LogSettings\nfrom streams.kafka import KafkaLog\n"
            f"settings = LogSettings(bootstrap_servers={kafka_broker.address!r}, frames={self.frames})\n"
            f"log = KafkaLog(settings, session_timeout={SESSION}, framable={framable!r})"
        )
        opened: list[EventLog] = []

        def make() -> EventLog:
            log = KafkaLog(settings, session_timeout=SESSION, max_poll_interval=SESSION * 2, framable=framable)
            opened.append(log)
            return log

        yield make
        for log in opened:
            log.close()

    @pytest.fixture
    def forget(self, kafka_broker: KafkaBroker) -> Callable[[str, int, int], None]:
        def delete(topic: str, partition: int, offset: int) -> None:
            first = offset // SLOTS if self.frames else offset
            with closing(KafkaAdminClient(bootstrap_servers=kafka_broker.address)) as admin:
                admin.delete_records({TopicPartition(topic, partition): first})

        return delete

    def test_a_record_without_a_value_is_a_tombstone(self, log: EventLog, kafka_broker: KafkaBroker, topic: str):
        log.append(topic, [record("k", "")])
        with closing(KafkaConsumer(topic, bootstrap_servers=kafka_broker.address, auto_offset_reset="earliest")) as raw:
            found = next(iter(raw))
        assert (found.key, found.value) == (b"k", None)
        assert [each.value for each in everything(log, topic)] == [b""]


@pytest.mark.kafka
class TestKafkaLogWithFrames(TestKafkaLog):
    """The same promises when several events travel in one record."""

    frames = True

    def test_events_of_a_partition_share_records(self, log: EventLog, kafka_broker: KafkaBroker, topic: str):
        log.append(topic, [record(f"k{index}", f"{index}") for index in range(1000)])
        with closing(KafkaConsumer(topic, bootstrap_servers=kafka_broker.address, auto_offset_reset="earliest")) as raw:
            records = []
            while sum(count(each.headers) for each in records) < 1000:
                records += [each for batch in raw.poll(timeout_ms=1000).values() for each in batch]
        assert 4 <= len(records) <= 12
        assert {dict(each.headers)["content-type"] for each in records} == {b"application/vnd.quillstream.frame"}
        assert log.count(topic, 0, 0, log.end_offsets(topic)[0]) == len(log.read(topic, 0, 0))
        group = new_id()
        estimated = lag(log, group, topic)
        assert estimated == pytest.approx(1000, rel=0.05)

    def test_logs_without_the_setting_read_frames_too(self, log: EventLog, kafka_broker: KafkaBroker, topic: str):
        from streams.kafka import KafkaLog

        places = log.append(topic, [record("k", "a"), record("k", "b")])
        plain = KafkaLog(LogSettings(bootstrap_servers=kafka_broker.address), framable=frozenset({topic}))
        more = plain.append(topic, [record("k", "c"), record("k", "d")])
        assert [each.value for each in everything(plain, topic)] == [b"a", b"b", b"c", b"d"]
        assert [(each.partition, each.offset) for each in everything(log, topic)] == places + more
        plain.close()
