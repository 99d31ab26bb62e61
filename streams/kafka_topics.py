"""How the topics of Quillstream are made on Kafka. Replication is the cluster's default."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from infra.settings import LogSettings
from streams.events import COMPACTED
from streams.log import MAX_RECORD_BYTES
from streams.retention import SUPERSEDED_FOR, TOMBSTONE_FOR, retention

# A batch carries its own header, and a record that zstd cannot shrink keeps its length.
MAX_BATCH_BYTES = MAX_RECORD_BYTES + (64 << 10)


def topic_layout(topic: str, settings: LogSettings) -> dict[str, Any]:
    """Partitions and settings of a topic, as the admin client takes them."""
    configs = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": str(MAX_BATCH_BYTES)}
    if topic in COMPACTED:
        configs |= {
            "cleanup.policy": "compact",
            "min.compaction.lag.ms": _milliseconds(SUPERSEDED_FOR),
            "delete.retention.ms": _milliseconds(TOMBSTONE_FOR),
            # Else the broker may take weeks to forget what a newer record or a tombstone has replaced.
            "max.compaction.lag.ms": _milliseconds(TOMBSTONE_FOR),
        }
    kept = retention(topic, settings.retention_days)
    configs |= {"retention.ms": _milliseconds(kept) if kept else "-1", "retention.bytes": "-1"}
    if kept:
        # A record goes only with its segment, so a segment must not be open for much longer than records are kept.
        configs["segment.ms"] = _milliseconds(min(kept / 4, timedelta(days=1)))
    return {"num_partitions": settings.partitions, "configs": configs}


def _milliseconds(time: timedelta) -> str:
    return str(time // timedelta(milliseconds=1))
