"""Reading a window of a topic again, without a consumer group: whoever consumes the topic notices nothing."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import AwareDatetime, Field, model_validator

from infra.errors import InputError, NotFound
from infra.identity import Value
from streams.codec import UndecodableEvent, decode
from streams.events import Event
from streams.log import EventLog, StoredRecord

BATCH = 500
"""Records per read."""


class Window(Value):
    """The records of a topic that the log took from one moment on and before another."""

    topic: str = Field(description="Topic.")
    start: AwareDatetime = Field(description="First moment.")
    end: AwareDatetime = Field(description="First moment after it.")

    @model_validator(mode="after")
    def _goes_forward(self) -> Window:
        if self.end <= self.start:
            raise InputError(
                "the window is empty", seen=f"{self.start} to {self.end}", rule="its start lies before its end"
            )
        return self


class Reread(Value):
    """A record of the window, and how far the reading is."""

    event: Event | None = Field(description="Its event; None when the record is none.")
    done: int = Field(ge=0, description="Offsets passed, this one included.")
    total: int = Field(ge=1, description="Offsets in the window; there may be fewer records.")


def reread(log: EventLog, window: Window) -> Iterator[Reread]:
    """The window's records as they are on the log when it is called, one partition after the other.

    Raises `NotFound` when the log has no such topic.
    """
    if not log.partitions(window.topic):
        raise NotFound("the log has no such topic", seen=window.topic)
    starts, ends = log.offsets_at(window.topic, window.start), log.offsets_at(window.topic, window.end)
    spans = {partition: (starts[partition], end) for partition, end in sorted(ends.items())}
    total = sum(end - start for start, end in spans.values())
    before = 0
    for partition, (start, end) in spans.items():
        position = start
        while position < end and (batch := log.read(window.topic, partition, position, limit=BATCH)):
            for record in batch:
                if record.offset < end:
                    yield Reread(event=_event(record), done=before + record.offset + 1 - start, total=total)
            position = batch[-1].offset + 1
        before += end - start


def _event(record: StoredRecord) -> Event | None:
    try:
        return decode(record)
    except UndecodableEvent:
        return None
