"""The log, the emitter and the consumer on a real Kafka broker, and without one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource
from pydantic import SecretStr

from infra.errors import SettingsError, Unavailable
from infra.identity import new_id
from infra.kafka_broker import KafkaBroker
from infra.settings import LogSettings
from streams.codec import decode
from streams.consumer import Consumer
from streams.dead_letters import dead_letter_topic
from streams.emitter import Emitter
from streams.events import (
    CONTENT_DOCUMENTS,
    LLM_EVALUATIONS,
    LLM_FEEDBACK,
    LLM_INTAKE,
    LLM_INTERACTIONS,
    OPS_ALERTS,
    OPS_RELEASES,
    TOPICS,
    Event,
    FeedbackGiven,
)
from streams.kafka import KafkaLog
from streams.log import Record, StoredRecord, lag
from streams.masking import Masker

pytestmark = pytest.mark.kafka
KEEPING = ("cleanup.policy", "retention.ms", "segment.ms", "max.compaction.lag.ms")
NOBODY = LogSettings(bootstrap_servers="127.0.0.1:9")


@pytest.fixture
def log(kafka_broker: KafkaBroker) -> Iterator[KafkaLog]:
    log = KafkaLog(LogSettings(bootstrap_servers=kafka_broker.address))
    yield log
    log.close()


@pytest.fixture
def own_broker(kafka_broker: KafkaBroker, tmp_path: Path) -> Iterator[KafkaBroker]:
    """A broker that the test may kill."""
    broker = KafkaBroker(kafka_broker.home, tmp_path / "kafka")
    with broker:
        yield broker


def stored(log: KafkaLog, topic: str) -> list[StoredRecord]:
    return [each for partition in log.end_offsets(topic) for each in log.read(topic, partition, 0)]


@pytest.mark.parametrize("action", ["ensure", "append", "read", "join", "committed"])
def test_without_a_broker_each_action_says_so_soon(action: str):
    log = KafkaLog(NOBODY)
    actions = {
        "ensure": lambda: log.ensure_topics(["t"]),
        "append": lambda: log.append("t", [Record(key="k", value=b"v")]),
        "read": lambda: log.read("t", 0, 0),
        "join": lambda: log.join("g", ["t"]),
        "committed": lambda: log.committed("g", "t"),
    }
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"Kafka does not answer; seen: 127\.0\.0\.1:9; .*start the broker"):
        actions[action]()
    assert time.monotonic() - began < 15
    log.close()


def test_settings_that_cannot_work_are_named():
    with pytest.raises(SettingsError, match="login is not complete"):
        KafkaLog(LogSettings(security_protocol="SASL_SSL")).partitions("t")
    with pytest.raises(SettingsError, match="not an address"):
        KafkaLog(LogSettings(bootstrap_servers="localhost")).partitions("t")
    plain = LogSettings(
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        sasl_username="u",
        sasl_password=SecretStr("hidden"),
        bootstrap_servers="127.0.0.1:9",
    )
    with pytest.raises(Unavailable) as caught:
        KafkaLog(plain).partitions("t")
    assert "hidden" not in str(caught.value)


def test_each_topic_is_made_as_it_is_used(kafka_broker: KafkaBroker):
    names = {each: f"{each}.dlq" for each in TOPICS}
    log = KafkaLog(LogSettings(bootstrap_servers=kafka_broker.address, partitions=3, retention_days=7))
    with closing(KafkaAdminClient(bootstrap_servers=kafka_broker.address)) as admin:
        # Other tests may have made them under other settings.
        here = set(admin.list_topics())
        admin.delete_topics([each for pair in names.items() for each in pair if each in here])
        log.ensure_topics([each for pair in names.items() for each in pair])
        everyone = [ConfigResource("TOPIC", each) for pair in names.items() for each in pair]
        found = admin.describe_configs(everyone)["topic"]
    kept = {topic: tuple(found[topic].get(name, {}).get("value") for name in KEEPING) for topic in found}
    week, day, quarter, for_ever = "604800000", "86400000", "21600000", (None, "-1", None, None)
    compacted = ("compact", "-1", None, day)
    assert kept == {
        CONTENT_DOCUMENTS: compacted,
        OPS_RELEASES: compacted,
        LLM_INTAKE: (None, day, quarter, None),
        f"{LLM_INTAKE}.dlq": (None, day, quarter, None),
        **dict.fromkeys((LLM_INTERACTIONS, LLM_EVALUATIONS, LLM_FEEDBACK, OPS_ALERTS), (None, week, day, None)),
        **{dlq: for_ever for topic, dlq in names.items() if topic != LLM_INTAKE},
    }
    assert {log.partitions(topic) for topic in TOPICS} == {3}
    log.close()


def test_two_consumers_share_the_work_and_one_takes_over(log: KafkaLog, kafka_broker: KafkaBroker):
    group = new_id()
    events = [Event(data=FeedbackGiven(interaction_id=f"{group}-{number}")) for number in range(60)]
    emitter = Emitter(log, masker=Masker(), outbox=None, source="test")
    receipts = [emitter.emit(event.data, event.id) for event in events]
    log.append(LLM_FEEDBACK, [Record(key=group, value=b"not an event")])
    assert all(receipt.wait(20) for receipt in receipts)
    emitter.close()
    seen: dict[str, list[str]] = {"first": [], "second": []}

    def consumer(name: str) -> Consumer:
        own = KafkaLog(LogSettings(bootstrap_servers=kafka_broker.address), session_timeout=3)

        def handle(event: Event, record: StoredRecord) -> None:
            seen[name].append(event.id)
            time.sleep(0.01)

        return Consumer(own, group, {LLM_FEEDBACK: handle})

    stop = threading.Event()
    helper = threading.Thread(target=consumer("second").run, args=(stop,))
    helper.start()
    consumer("first").run_until({LLM_FEEDBACK: log.end_offsets(LLM_FEEDBACK)}, 60)
    stop.set()
    helper.join(30)
    assert lag(log, group, LLM_FEEDBACK) == 0
    assert {event.id for event in events} <= set(seen["first"]) | set(seen["second"])
    letters = [each for each in stored(log, dead_letter_topic(LLM_FEEDBACK)) if each.key == group]
    assert {each.value for each in letters} == {b"not an event"}


@pytest.mark.timeout(120)
def test_a_killed_broker_loses_nothing_that_was_acknowledged(own_broker: KafkaBroker, tmp_path: Path):
    log = KafkaLog(LogSettings(bootstrap_servers=own_broker.address))
    emitter = Emitter(log, masker=Masker(), outbox=tmp_path / "outbox", source="test")
    assert emitter.emit(FeedbackGiven(interaction_id="a"), "before").wait(10)
    assert emitter.flush(30)
    own_broker.kill()
    receipts = [emitter.emit(FeedbackGiven(interaction_id="a"), f"during-{number}") for number in range(20)]
    assert all(receipt.wait(10) for receipt in receipts)
    assert not emitter.flush(1)
    own_broker.start()
    assert emitter.flush(60)
    emitter.close()
    log.close()
    fresh = KafkaLog(LogSettings(bootstrap_servers=own_broker.address))
    ids = [decode(each).id for each in stored(fresh, LLM_FEEDBACK)]
    assert ids == ["before", *(f"during-{number}" for number in range(20))]
    fresh.close()


@pytest.mark.timeout(120)
def test_a_consumer_lives_through_a_restart_of_the_broker(own_broker: KafkaBroker):
    log = KafkaLog(LogSettings(bootstrap_servers=own_broker.address), session_timeout=3)
    seen: list[str] = []
    stop = threading.Event()
    consumer = Consumer(log, "g", {LLM_FEEDBACK: lambda event, record: seen.append(event.id)})
    thread = threading.Thread(target=consumer.run, args=(stop,))
    thread.start()
    emitter = Emitter(log, masker=Masker(), outbox=None, source="test")
    assert emitter.emit(FeedbackGiven(interaction_id="a"), "before").wait(30)
    wait_for(lambda: seen == ["before"])
    own_broker.kill()
    time.sleep(1)
    own_broker.start()
    wait_for(lambda: emitter.emit(FeedbackGiven(interaction_id="a"), "after").wait(30))
    wait_for(lambda: "after" in seen)
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    emitter.close()
    log.close()


def wait_for(condition: object, seconds: float = 60) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
