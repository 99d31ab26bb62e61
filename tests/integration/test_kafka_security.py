"""Logins and certificates, against a real broker that asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from pydantic import SecretStr

from infra.errors import SettingsError, Unavailable
from infra.identity import new_id
from infra.kafka_broker import KafkaBroker, Security
from infra.settings import LogSettings
from streams.kafka import KafkaLog
from streams.log import Record, lag

pytestmark = pytest.mark.kafka
PASSWORD = "aPasswordOfTheTests1"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secured(
    kafka_broker: KafkaBroker, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KafkaBroker]:
    security = Security(authority.file, authority.signed("server"), "app", PASSWORD)
    broker = KafkaBroker(kafka_broker.home, tmp_path_factory.mktemp("secured") / "kafka", security)
    with broker:
        yield broker


def login(broker: KafkaBroker, authority: Authority, **changed: Any) -> LogSettings:
    settings = LogSettings(
        bootstrap_servers=broker.secured_address("SASL_SSL"),
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-256",
        sasl_username="app",
        sasl_password=SecretStr(PASSWORD),
        ssl_cafile=str(authority.file),
    )
    return settings.model_copy(update=changed)


def works(settings: LogSettings) -> None:
    """Every client gets through: admin, producer, reader, group member and transactions."""
    log, topic, group = KafkaLog(settings), f"t.{new_id()}", new_id()
    ((partition, offset),) = log.append(topic, [Record("k", b"v")])
    assert [each.value for each in log.read(topic, partition, offset)] == [b"v"]
    with log.join(group, [topic]) as reader:
        batch = reader.poll(timeout=10) or reader.poll(timeout=10)
        reader.publish([(f"{topic}.out", Record("k", each.value)) for each in batch], {(topic, partition): offset + 1})
    assert lag(log, group, topic) == 0
    assert sum(log.end_offsets(f"{topic}.out").values()) > 0
    log.close()


def refusal(settings: LogSettings) -> str:
    log = KafkaLog(settings)
    with pytest.raises((Unavailable, SettingsError)) as caught:
        log.append("t", [Record("k", b"v")])
    log.close()
    assert PASSWORD not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
def test_the_right_login_gets_through(secured: KafkaBroker, authority: Authority, mechanism: str):
    works(login(secured, authority, sasl_mechanism=mechanism))


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
def test_a_wrong_password_is_one_clear_error(secured: KafkaBroker, authority: Authority, mechanism: str):
    said = refusal(login(secured, authority, sasl_mechanism=mechanism, sasl_password=SecretStr("wrong")))
    assert said.startswith(f"Kafka refused the login; seen: {secured.secured_address('SASL_SSL')}; ")
    assert said.endswith("fix: check log.sasl_mechanism, log.sasl_username and log.sasl_password")


def test_a_broker_whose_authority_is_unknown_is_not_trusted(secured: KafkaBroker, authority: Authority, tmp_path: Path):
    other = Authority(tmp_path)
    said = refusal(login(secured, authority, ssl_cafile=str(other.file)))
    assert said.startswith("the broker's certificate is not trusted; ")
    assert said.endswith("fix: set log.ssl_cafile to the authority that signed it")


def test_a_client_shows_its_certificate(secured: KafkaBroker, authority: Authority, tmp_path: Path):
    address = secured.secured_address("SSL")
    settings = LogSettings(bootstrap_servers=address, security_protocol="SSL", ssl_cafile=str(authority.file))
    works(settings.model_copy(update={"ssl_certfile": str(authority.signed("client"))}))
    stranger = Authority(tmp_path).signed("stranger")
    for certificate in ("", str(stranger)):
        said = refusal(settings.model_copy(update={"ssl_certfile": certificate}))
        assert said.startswith("no secure connection to Kafka came about; ")
        assert "log.ssl_certfile" in said


def test_certificates_that_cannot_be_read_are_named(authority: Authority, tmp_path: Path):
    (tmp_path / "empty.pem").touch()
    for name in ("no-such.pem", "empty.pem"):
        settings = LogSettings(security_protocol="SSL", ssl_cafile=str(tmp_path / name))
        assert f"a certificate for Kafka cannot be used; seen: {tmp_path / name}" in refusal(settings)
    only = LogSettings(security_protocol="SSL", ssl_certfile=str(authority.file))
    assert "belong together" in refusal(only)
