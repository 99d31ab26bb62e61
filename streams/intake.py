"""From `llm.intake` to the stream: what applications produce by themselves goes on masked, to the topic of its type.

Event id, source and time stay, so an event that arrives twice is one. The masked event, or the dead letter of what
cannot be read, is appended and the offset committed in one step. The letters lie in `llm.intake.dlq`, which is kept as
short and guarded as the topic itself: they hold what was not masked, and so may the text of their errors, which is
why no error's text is logged here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence

from infra.errors import InputError, Unavailable
from streams.codec import decode, encode
from streams.dead_letters import dead_letter_topic, letter_of
from streams.events import INTAKE_TYPES, LLM_FEEDBACK, LLM_INTAKE, LLM_INTERACTIONS, topic_of
from streams.log import EventLog, GroupReader, LostPartition, Record, StoredRecord, check_appendable
from streams.masking import Masker, mask_payload

GROUP = "intake"
BATCH = 250
"""Records per transaction: on Kafka, where each waits for the disk, half as many again pass per second as with 100."""
POLL_SECONDS = 0.5
PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 30.0
_log = logging.getLogger(__name__)


class Intake:
    """One member of the consumer group `intake`; start several to share the work."""

    def __init__(self, log: EventLog, masker: Masker) -> None:
        self._events = log
        self._masker = masker

    def run(self, stop: threading.Event, *, until: Mapping[int, int] | None = None) -> int:
        """Pass records on until `stop` is set, or until the group has committed `until` (partition to next offset).

        Returns how many this member passed on or put aside. While the log is away it waits.
        """
        dead = dead_letter_topic(LLM_INTAKE)
        self._events.ensure_topics([LLM_INTAKE, dead, LLM_INTERACTIONS, LLM_FEEDBACK])
        taken, pause = 0, PAUSE_SECONDS
        with self._events.join(GROUP, [LLM_INTAKE]) as reader:
            while not stop.is_set():
                try:
                    if until is not None and self._reached(until):
                        break
                    batch = reader.poll(max_records=BATCH, timeout=POLL_SECONDS)
                    taken += self._pass_on(reader, batch, stop)
                    pause = PAUSE_SECONDS
                except Unavailable as error:
                    pause = _wait(stop, pause, error)
        return taken

    def _reached(self, until: Mapping[int, int]) -> bool:
        committed = self._events.committed(GROUP, LLM_INTAKE)
        return all(committed.get(partition, 0) >= offset for partition, offset in until.items())

    def _pass_on(self, reader: GroupReader, batch: Sequence[StoredRecord], stop: threading.Event) -> int:
        """Publish what becomes of a batch; the number of its records, 0 when they come again elsewhere."""
        if not batch:
            return 0
        outputs = [self._output(record) for record in batch]
        offsets = {(record.topic, record.partition): record.offset + 1 for record in batch}
        pause = PAUSE_SECONDS
        while True:
            try:
                reader.publish(outputs, offsets)
                return len(batch)
            except LostPartition as error:
                _log.warning("%d records come again: %s", len(batch), error)
                return 0
            except Unavailable as error:
                # The batch was polled and would not be polled again: it is tried until the log is back.
                pause = _wait(stop, pause, error)
                if stop.is_set():
                    return 0

    def _output(self, record: StoredRecord) -> tuple[str, Record]:
        """Topic and record of the masked event, or of the dead letter."""
        try:
            event = decode(record)
            if event.data.type not in INTAKE_TYPES:
                raise InputError(
                    "llm.intake does not take this event", seen=event.data.type, rule=" or ".join(INTAKE_TYPES)
                )
            masked = mask_payload(event.data, self._masker)
            topic, output = topic_of(masked), encode(event.model_copy(update={"data": masked}))
            check_appendable(topic, [output])
        except Exception as error:  # noqa: BLE001 - whatever one record does, it must not stop the others
            place = f"{record.topic}/{record.partition}/{record.offset}"
            _log.warning("%s goes to the dead letters: %s", place, type(error).__name__)
            return dead_letter_topic(LLM_INTAKE), letter_of(record, error, attempts=1)
        return topic, output


def _wait(stop: threading.Event, pause: float, error: Unavailable) -> float:
    """Wait `pause` seconds or until `stop`; how long to wait the next time."""
    _log.warning("the intake waits: %s", error)
    stop.wait(pause)
    return min(2 * pause, LONGEST_PAUSE_SECONDS)
