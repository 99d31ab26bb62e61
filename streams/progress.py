"""How far consumer groups are: what is not handled yet of each partition, and how long it has been waiting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime

from pydantic import Field

from infra.identity import Value
from streams.dead_letters import dead_letter_topic
from streams.log import EventLog, events_in, lags, retry_topic


class Progress(Value):
    """Where a group stands in one partition."""

    group: str = Field(description="Consumer group.")
    topic: str = Field(description="Topic, or the group's retry topic of it.")
    partition: int = Field(ge=0, description="Partition.")
    behind: int = Field(ge=0, description="Events that are not handled and committed yet.")
    oldest_seconds: float | None = Field(description="Age of the oldest of them, seconds; None when there is none.")


def progress(log: EventLog, groups: Mapping[str, Iterable[str]]) -> list[Progress]:
    """Where groups stand in their topics and in the retry topics of these. Raises `Unavailable` like the log.

    In a retry topic `behind` counts from the oldest record that waits: some after it may be done.
    """
    return [
        each
        for group, topics in groups.items()
        for topic in topics
        for name in (topic, retry_topic(topic, group))
        for each in _of_topic(log, group, name)
    ]


def dead_letters_written(log: EventLog, topics: Iterable[str]) -> dict[str, int]:
    """Topic to the records ever written to its dead letters, the notes of replays among them; 0 without any."""
    return {topic: events_in(log, dead_letter_topic(topic)) for topic in topics}


def _of_topic(log: EventLog, group: str, topic: str) -> Iterator[Progress]:
    committed = log.committed(group, topic)
    for partition, behind in sorted(lags(log, group, topic).items()):
        first = log.read(topic, partition, committed.get(partition, 0), limit=1) if behind else []
        age = max(0.0, (datetime.now(UTC) - first[0].time).total_seconds()) if first else None
        yield Progress(group=group, topic=topic, partition=partition, behind=max(0, behind), oldest_seconds=age)
