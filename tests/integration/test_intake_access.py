"""The rights that `docs/intake.md` tells operators to give are enough for the intake, and keep everybody else out."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from certificates import Authority
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from kafka.errors import TopicAuthorizationFailedError
from pydantic import SecretStr

from infra.errors import Unavailable
from infra.identity import new_id
from infra.kafka_broker import KafkaBroker, Security
from infra.settings import LogSettings
from serving.app import Rooms
from streams.codec import decode, encode
from streams.events import LLM_FEEDBACK, LLM_INTAKE, LLM_INTERACTIONS, OPEN_TOPICS, TOPICS, Event, FeedbackGiven
from streams.intake import Intake
from streams.kafka import KafkaLog
from streams.masking import Masker

pytestmark = pytest.mark.kafka
PASSWORD = "aPasswordOfTheTests1"
MEMBER, APPLICATION, SERVER = "quill-intake", "digest", "quill"
DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "intake.md").read_text()
RIGHTS = re.findall(r"^kafka-acls\.sh --bootstrap-server HOST:9092 --add (.*)$", DOCUMENT, flags=re.MULTILINE)
RESOURCES = {
    "--topic": ResourceType.TOPIC,
    "--group": ResourceType.GROUP,
    "--transactional-id": ResourceType.TRANSACTIONAL_ID,
}


class GuardedBroker(KafkaBroker):
    """A broker that gives nobody a right by itself; who comes without a login, on loopback, is the operator."""

    def _properties(self, data: Path) -> str:
        authorizer = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
        return super()._properties(data) + f"authorizer.class.name={authorizer}\nsuper.users=User:ANONYMOUS\n"


def rights(line: str) -> Iterator[ACL]:
    """What one line of the document gives."""
    words = line.split()
    given = dict(zip(words[::2], words[1::2], strict=True))
    pattern = ACLResourcePatternType[given.get("--resource-pattern-type", "literal").upper()]
    for option, kind in RESOURCES.items():
        if option in given:
            yield ACL(
                principal=given["--allow-principal"],
                host="*",
                operation=ACLOperation[given["--operation"].upper()],
                permission_type=ACLPermissionType.ALLOW,
                resource_pattern=ResourcePattern(kind, given[option], pattern),
            )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def broker(
    kafka_broker: KafkaBroker, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KafkaBroker]:
    security = Security(authority.file, authority.signed("server"), MEMBER, PASSWORD)
    broker = GuardedBroker(kafka_broker.home, tmp_path_factory.mktemp("guarded") / "kafka", security)
    with broker:
        operator = KafkaLog(LogSettings(bootstrap_servers=broker.address))
        operator.ensure_topics([*TOPICS, f"{LLM_INTAKE}.dlq"])
        operator.close()
        admin = KafkaAdminClient(bootstrap_servers=broker.address)
        admin.alter_user_scram_credentials(
            [
                UserScramCredentialUpsertion(name, ScramMechanism.SCRAM_SHA_256, PASSWORD)
                for name in (APPLICATION, SERVER)
            ]
        )
        given = [right for line in RIGHTS for right in rights(line)]
        assert len(given) >= 7
        names = [*OPEN_TOPICS, *(f"{topic}.dlq" for topic in OPEN_TOPICS)]
        everything = f"--allow-principal User:{SERVER} --operation All"
        given += [right for name in names for right in rights(f"{everything} --topic {name}")]
        given += rights(f"{everything} --group monitor")
        admin.create_acls(given)
        admin.close()
        yield broker


def login(broker: KafkaBroker, authority: Authority, name: str) -> dict[str, str]:
    return {
        "bootstrap_servers": broker.secured_address("SASL_SSL"),
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-256",
        "ssl_cafile": str(authority.file),
    } | {"sasl_plain_username": name, "sasl_plain_password": PASSWORD}


@pytest.fixture
def produced(broker: KafkaBroker, authority: Authority) -> str:
    """The application produces an event and a record that is none, as far as its rights go."""
    name = new_id()
    record = encode(Event(data=FeedbackGiven(interaction_id=name, comment="ask ann@example.org")))
    with_login = login(broker, authority, APPLICATION)
    with KafkaProducer(**with_login) as producer:
        for value in (record.value, b"no event"):
            producer.send(LLM_INTAKE, value, key=b"k", headers=list(record.headers)).get(30)
    return name


def settings_of(broker: KafkaBroker, authority: Authority, name: str) -> LogSettings:
    return LogSettings(
        backend="kafka",
        bootstrap_servers=broker.secured_address("SASL_SSL"),
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-256",
        sasl_username=name,
        sasl_password=SecretStr(PASSWORD),
        ssl_cafile=str(authority.file),
    )


def test_a_server_that_does_not_mask_needs_no_right_to_the_intake(broker: KafkaBroker, authority: Authority, settings):
    rooms = Rooms(settings.model_copy(update={"log": settings_of(broker, authority, SERVER)}), monitor=True)
    found = rooms.figures()
    assert found.log_up
    assert {each.topic for each in found.progress} >= {LLM_INTERACTIONS, LLM_FEEDBACK}
    with pytest.raises(Unavailable, match="rights"):
        rooms.log.ensure_topics([LLM_INTAKE])
    rooms.close()


def test_the_member_with_these_rights_masks_and_passes_on(broker: KafkaBroker, authority: Authority, produced: str):
    member = KafkaLog(settings_of(broker, authority, MEMBER))
    stop = threading.Event()
    timer = threading.Timer(60, stop.set)
    timer.start()
    assert Intake(member, Masker()).run(stop, until=member.end_offsets(LLM_INTAKE)) >= 2
    timer.cancel()
    member.close()
    operator = KafkaLog(LogSettings(bootstrap_servers=broker.address))
    found = [decode(one) for n in operator.end_offsets(LLM_FEEDBACK) for one in operator.read(LLM_FEEDBACK, n, 0)]
    assert [one.data.comment for one in found if one.data.interaction_id == produced] == ["ask [EMAIL]"]
    assert sum(operator.end_offsets(f"{LLM_INTAKE}.dlq").values()) > 0
    operator.close()


def test_an_application_sees_no_other_topic_and_reads_nothing_back(
    broker: KafkaBroker, authority: Authority, produced: str
):
    consumer = KafkaConsumer(**login(broker, authority, APPLICATION), auto_offset_reset="earliest")
    assert consumer.topics() == {LLM_INTAKE}
    consumer.assign([TopicPartition(LLM_INTAKE, partition) for partition in consumer.partitions_for_topic(LLM_INTAKE)])
    with pytest.raises(TopicAuthorizationFailedError):
        list(islice(iter(lambda: consumer.poll(timeout_ms=500), None), 20))
    consumer.close()


@pytest.mark.parametrize("topic", [f"{LLM_INTAKE}.dlq", LLM_INTERACTIONS, LLM_FEEDBACK])
def test_an_application_writes_to_the_intake_only(broker: KafkaBroker, authority: Authority, topic: str):
    with (
        KafkaProducer(**login(broker, authority, APPLICATION), max_block_ms=10_000) as producer,
        pytest.raises(TopicAuthorizationFailedError),
    ):
        producer.send(topic, b"x", key=b"k").get(30)
