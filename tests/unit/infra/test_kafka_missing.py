"""Why a broker cannot run here is said before anything is started."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from infra import kafka_broker
from infra.errors import Unavailable
from infra.kafka_broker import KafkaBroker, missing


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Programs that seem to be installed, with what `-version` says."""
    found = {"java": 'openjdk version "21.0.2" 2024-01-16', "mvn": ""}

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, "", found[command[0]])

    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name in found else None)
    monkeypatch.setattr(kafka_broker.subprocess, "run", run)
    return found


def test_nothing_is_missing_where_java_and_maven_are(programs: dict[str, str]):
    assert missing() == ""


def test_java_has_to_be_there_and_new_enough(programs: dict[str, str]):
    programs["java"] = 'java version "1.8.0_402"'
    assert missing() == 'Kafka needs Java 17 or newer; found java version "1.8.0_402"'
    programs["java"] = ""
    assert "found none" in missing()
    del programs["java"]
    assert missing().startswith("Java is not installed")


def test_maven_has_to_be_there_and_start_says_so(programs: dict[str, str], tmp_path: Path):
    del programs["mvn"]
    assert missing().startswith("Maven (mvn) is not installed")
    with pytest.raises(Unavailable, match="Kafka cannot be started; seen: Maven"):
        KafkaBroker(tmp_path / "home").start()
    assert list(tmp_path.iterdir()) == []


def test_a_failing_program_is_named_with_what_it_said():
    with pytest.raises(Unavailable, match=r"sh -c failed; seen: no such jar"):
        kafka_broker._run(("sh",), "-c", "echo no such jar >&2; exit 3")
    with pytest.raises(Unavailable, match="did not end"):
        kafka_broker._run(("sleep",), "5", timeout=0.05)


def test_a_broker_that_never_ran_can_be_stopped(tmp_path: Path):
    broker = KafkaBroker(tmp_path)
    broker.stop()
    broker.kill()
    assert broker.address == ""
