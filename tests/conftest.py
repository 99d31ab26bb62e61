"""Fixtures for all tests: settings of a throw-away installation, and one real Kafka broker per run."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
    if reason := missing():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    cache = fresh_settings(Path("/nonexistent")).models.cache
    broker = KafkaBroker(cache / "kafka")
    with broker:
        yield broker
