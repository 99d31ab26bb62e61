"""Fixtures for all tests: settings of a throw-away installation, and one real Kafka broker per run."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from infra.kafka_broker import KafkaBroker, missing
from infra.settings import Settings, load_settings


def fresh_settings(home: Path, **overrides: object) -> Settings:
    """Settings that see neither the user's file nor the environment, except where the model cache lies."""
    cache = {name: os.environ[name] for name in ("QUILL_MODELS_CACHE",) if name in os.environ}
    return load_settings(file=home / "none.toml", environment=cache, overrides={"home": home, **overrides})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The defaults, with all state under `tmp_path/home`."""
    return fresh_settings(tmp_path / "home")


@pytest.fixture(scope="session")
def kafka_broker() -> Iterator[KafkaBroker]:
    """A running broker. Without Java or Maven the test is skipped with the reason; with CI=true it fails."""
    _need_kafka()
    cache = fresh_settings(Path("/nonexistent")).models.cache
    broker = KafkaBroker(cache / "kafka")
    with broker:
        yield broker


@pytest.fixture
def own_broker(settings: Settings, tmp_path: Path) -> Iterator[KafkaBroker]:
    """A running broker whose topics hold what this test put there and whose files lie in `tmp_path/kafka`."""
    _need_kafka()
    broker = KafkaBroker(settings.models.cache / "kafka", tmp_path / "kafka")
    with broker:
        yield broker


def _need_kafka() -> None:
    if reason := missing():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With QUILL_TESTS_SKIP_IS_FAILURE=1, as `make test-models` sets it, a test that was skipped has failed."""
    report = yield
    if report.skipped and os.environ.get("QUILL_TESTS_SKIP_IS_FAILURE") == "1" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and a skip is a failure here: {report.longrepr}"
    return report
