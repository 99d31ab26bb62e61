"""The size of the chaos tests: short by default, full where the environment says QUILL_CHAOS=full (`make chaos`); and
a broker that a test has for itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.kafka_broker import KafkaBroker, missing
from infra.settings import Settings


@pytest.fixture
def scale() -> Callable[[int, int], int]:
    """A function of a short and a full size that gives the one this run asks for."""
    full_size = os.environ.get("QUILL_CHAOS") == "full"

    def size(short: int, full: int) -> int:
        return full if full_size else short

    return size


@pytest.fixture
def own_broker(settings: Settings, tmp_path: Path) -> Iterator[KafkaBroker]:
    """A running broker whose topics hold what this test put there and whose files lie in `tmp_path/kafka`."""
    if reason := missing():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    broker = KafkaBroker(settings.models.cache / "kafka", tmp_path / "kafka")
    with broker:
        yield broker


@pytest.fixture
def on_kafka(settings: Settings, own_broker: KafkaBroker) -> Settings:
    """Settings of a throw-away installation on a broker of its own."""
    kafka = settings.log.model_copy(update={"backend": "kafka", "bootstrap_servers": own_broker.address})
    return settings.model_copy(update={"log": kafka})
