"""How long the logs keep records, the same on Kafka and on the embedded log. Neither waits for a group to read them."""

from __future__ import annotations

from datetime import timedelta

from streams.events import COMPACTED, LLM_INTAKE, UNMASKED, UNMASKED_HOURS

SUPERSEDED_FOR = timedelta(minutes=10)
"""How long a record of a compacted topic stays at least after its key has a newer one."""
TOMBSTONE_FOR = timedelta(days=1)
"""How long a record without a value stays on a compacted topic: time for every reader to see that its key is gone."""


def retention(topic: str, days: float) -> timedelta | None:
    """How long records of a topic are kept; None: as compaction leaves them, or for ever.

    `days` is the setting `log.retention_days`; 0 keeps them for ever.
    """
    if topic in UNMASKED or topic.startswith(f"{LLM_INTAKE}."):  # its retry topics too
        return timedelta(hours=UNMASKED_HOURS)
    if topic in COMPACTED or topic.endswith(".dlq"):  # dead letters wait for a person
        return None
    return timedelta(days=days) if days else None
