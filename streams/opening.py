"""The event log and the emitter that the settings name."""

from __future__ import annotations

from pathlib import Path

from infra.settings import Settings
from streams.embedded import EmbeddedLog
from streams.emitter import Emitter
from streams.large_records import LargeRecords
from streams.log import EventLog
from streams.masking import open_masker


def open_log(settings: Settings) -> EventLog:
    """The embedded log at `<home>/log.db`, or Kafka; long values beside it. Nothing is opened before it is used."""
    claims = Path(settings.log.claims).expanduser() if settings.log.claims else settings.home / "artifacts"
    return LargeRecords(_log(settings), claims)


def _log(settings: Settings) -> EventLog:
    if settings.log.backend == "kafka":
        from streams.kafka import KafkaLog

        return KafkaLog(settings.log)
    return EmbeddedLog(
        settings.home / "log.db", partitions=settings.log.partitions, retention_days=settings.log.retention_days
    )


def open_emitter(settings: Settings, log: EventLog, source: str = "quillstream") -> Emitter:
    """An emitter into the log; with Kafka through the outbox at `<home>/outbox`, whose leftovers it forwards."""
    outbox = settings.home / "outbox" if settings.log.backend == "kafka" else None
    emitter = Emitter(log, masker=open_masker(settings.masking), outbox=outbox, source=source)
    emitter.forward()
    return emitter
