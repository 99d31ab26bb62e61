"""The size of the chaos tests: short by default, full where the environment says QUILL_CHAOS=full (`make chaos`)."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from infra.kafka_broker import KafkaBroker
from infra.settings import Settings


@pytest.fixture
def scale() -> Callable[[int, int], int]:
    """A function of a short and a full size that gives the one this run asks for."""
    full_size = os.environ.get("QUILL_CHAOS") == "full"

    def size(short: int, full: int) -> int:
        return full if full_size else short

    return size


@pytest.fixture
def on_kafka(settings: Settings, own_broker: KafkaBroker) -> Settings:
    """Settings of a throw-away installation on a broker of its own."""
    kafka = settings.log.model_copy(update={"backend": "kafka", "bootstrap_servers": own_broker.address})
    return settings.model_copy(update={"log": kafka})
