"""`quill dlq` against a real Kafka broker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.cli import main
from infra.identity import new_id
from infra.kafka_broker import KafkaBroker
from infra.settings import LogSettings
from streams.consumer import Consumer
from streams.kafka import KafkaLog
from streams.log import Record

pytestmark = pytest.mark.kafka


def test_a_letter_on_kafka_is_listed_shown_and_replayed_once(
    kafka_broker: KafkaBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUILL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QUILL_LOG_BACKEND", "kafka")
    monkeypatch.setenv("QUILL_LOG_BOOTSTRAP_SERVERS", kafka_broker.address)

    def quill(*arguments: str):
        with pytest.raises(SystemExit) as end:
            main(["dlq", *arguments, "--json"])
        assert end.value.code in (0, None)
        return json.loads(capsys.readouterr().out)

    topic = f"t.{new_id()}"
    log = KafkaLog(LogSettings(bootstrap_servers=kafka_broker.address))
    log.append(topic, [Record(key="k", value=b"no event", headers=(("x", b"1"),))])
    consumer = Consumer(log, f"g.{topic}", {topic: lambda event, record: None})
    consumer.run_until({topic: log.end_offsets(topic)}, 60)
    (row,) = quill("list", topic)
    assert row["error"].startswith("UndecodableEvent: the header ce_id is missing")
    shown = quill("show", row["letter"])
    assert (shown["value"], shown["headers"][0]) == ("no event", ["x", "1"])
    assert [each["replayed"] for each in quill("replay", row["letter"])] == [True]
    assert [each["replayed"] for each in quill("replay", topic)] == [False]
    found = [each for number in log.end_offsets(topic) for each in log.read(topic, number, 0)]
    assert [(each.value, each.headers) for each in found] == [(b"no event", (("x", b"1"),))] * 2
    log.close()
