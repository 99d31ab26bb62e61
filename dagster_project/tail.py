"""Reading what a topic gained since a cursor, for sensors: no group, no state but the cursor itself."""

import json
from collections.abc import Callable
from typing import NamedTuple

from infra.identity import canonical_json, content_id, short
from streams.codec import UndecodableEvent, decode
from streams.events import Event
from streams.log import EventLog


class News(NamedTuple):
    """What a topic gained."""

    found: tuple[str, ...]
    """What the selection returned for the new records, in order, without empty and repeated values."""
    cursor: str
    """Next offset per partition as canonical JSON; give it back at the next tick."""
    run_key: str
    """A key that is equal for the same records."""


def new_records(log: EventLog, topic: str, cursor: str, select: Callable[[Event], str]) -> News:
    """Read every partition from the cursor (empty: the beginning) to its end and select from each event.

    Records that do not decode are passed over: the consumers dead-letter them.
    """
    offsets = {int(partition): int(offset) for partition, offset in json.loads(cursor or "{}").items()}
    found: dict[str, None] = {}
    for partition, end in sorted(log.end_offsets(topic).items()):
        position = offsets.get(partition, 0)
        while position < end:
            records = log.read(topic, partition, position)
            if not records:
                break
            for record in records:
                try:
                    value = select(decode(record))
                except UndecodableEvent:
                    continue
                if value:
                    found[value] = None
            position = records[-1].offset + 1
        offsets[partition] = max(position, end)
    text = canonical_json({str(partition): offset for partition, offset in offsets.items()}).decode()
    return News(tuple(found), text, f"{topic}:{short(content_id('position', offsets_as_text(offsets)))}")


def offsets_as_text(offsets: dict[int, int]) -> dict[str, int]:
    """Partition numbers as text, as JSON wants its keys."""
    return {str(partition): offset for partition, offset in offsets.items()}
