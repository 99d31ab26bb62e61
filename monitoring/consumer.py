"""The monitoring consumer: store → judge → drift → alert, for every interaction on the stream.

Delivery is at least once; every effect is idempotent: an interaction is stored once, a judge records one verdict for
it, a detector observes it once, a repeated alert has the id of the first. A judge that fails is an Unscored verdict;
consumption goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from infra.artifacts import Manifest
from infra.embedder import Embedder
from infra.errors import InputError, QuillError
from monitoring.alerts import AlertDesk
from monitoring.drift import Reference, load_reference
from monitoring.recording import Recorder, chosen_with
from monitoring.text_features import is_refusal
from monitoring.watch import Watch
from store.opening import Store
from streams.consumer import DELAYS, Batched, Consumer
from streams.events import (
    EVALUATION_CHANNEL,
    LLM_EVALUATIONS,
    LLM_FEEDBACK,
    LLM_INTERACTIONS,
    OPS_ALERTS,
    Event,
    InteractionRecorded,
)
from streams.log import EventLog, StoredRecord
from streams.protocols import Judge

logger = logging.getLogger(__name__)

GROUP = "monitor"
DRIFT_KEY = "embedding-drift:prompt"
REFUSAL_KEY = "refusal-rate:response"
REFUSAL_WARMUP = 50
"""Answers whose share of refusals counts as usual; fewer cannot tell a burst from a beginning."""
LOOK_FOR_REFERENCE_SECONDS = 5.0
BATCH = 16
"""Events stored and judged at once: few enough that a slow judge is done with them before the group gives it up."""


class Monitor:
    """One member of the consumer group `monitor`. Nothing is read or loaded before `run` or `run_until`."""

    def __init__(
        self,
        log: EventLog,
        store: Store,
        *,
        local: Judge,
        llm: Judge | None,
        sample: float,
        embedder: Embedder,
        reference: Manifest | None,
        newest: Callable[[], Manifest | None] | None = None,
    ) -> None:
        """`newest` is asked every few seconds for a reference that replaces the present one; None keeps it."""
        self._log = log
        self._store = store
        self._local = local
        self._llm = llm
        self._sample = sample
        self._embedder = embedder
        self._manifest = reference
        self._newest = newest
        self._looked = -LOOK_FOR_REFERENCE_SECONDS
        self._taken: Manifest | None = None
        self._reference: Reference | None = None
        self._drift: Watch | None = None
        self._refusals = refusal_watch(store)
        self._running: Consumer | None = None
        self._recorder = Recorder(log, store)
        self._desk = AlertDesk(log, store)

    def run(self, stop: threading.Event) -> None:
        """Consume until `stop` is set."""
        self._consumer().run(stop)

    def run_until(self, targets: Mapping[str, Mapping[int, int]], timeout: float) -> int:
        """Consume until the group's offsets reach the targets (topic -> partition -> next offset) or `timeout`
        seconds passed; the number of records handled here."""
        return self._consumer().run_until(targets, timeout)

    @property
    def counters(self) -> Mapping[str, int]:
        """See `Consumer.counters`; of the last `run`, or `run_until`, of this monitor."""
        return self._running.counters if self._running is not None else {}

    def handle(self, event: Event, record: StoredRecord | None = None) -> None:
        """Everything that one event of the stream sets off here."""
        del record
        self._handle([event])

    def _handle(self, events: Sequence[Event]) -> None:
        """All of them are stored before the first is judged: what happened must not wait for a judge."""
        self._store.interactions.put_many(events)
        stored = [(event.time, event.data) for event in events if isinstance(event.data, InteractionRecorded)]
        self._recorder.judge_many([interaction for _, interaction in stored], self._local, probability=1.0)
        for moment, interaction in stored:
            # Drift before the slow judge: an alert must not wait for a language model.
            if interaction.channel != EVALUATION_CHANNEL:
                self._watch(interaction, moment)
            probability = chosen_with(interaction, self._sample)
            if self._llm is not None and probability > 0:
                self._recorder.judge(interaction, self._llm, probability=probability)

    def _consumer(self) -> Consumer:
        self._log.ensure_topics([LLM_INTERACTIONS, LLM_FEEDBACK, LLM_EVALUATIONS, OPS_ALERTS])
        self._look_for_reference()
        handler = Batched(lambda pairs: self._handle([event for event, _ in pairs]), BATCH)
        handlers = {LLM_INTERACTIONS: handler, LLM_FEEDBACK: handler}
        self._running = Consumer(self._log, GROUP, handlers, delays=DELAYS)
        return self._running

    def _watch(self, interaction: InteractionRecorded, moment: datetime) -> None:
        try:
            self._look_for_reference()
        except QuillError as error:
            logger.warning("the newest drift reference is not used: %s", error)
        if self._drift is not None and self._reference is not None:
            score = self._reference.score(self._embedder.embed([interaction.prompt])[0])
            self._observe(self._drift, interaction, score, moment)
        if interaction.finish_reason in ("stop", "length", "refused"):
            refused = interaction.finish_reason == "refused" or is_refusal(interaction.response)
            self._observe(self._refusals, interaction, float(refused), moment)

    def _observe(self, watch: Watch, interaction: InteractionRecorded, score: float, moment: datetime) -> None:
        texts = self._reference.texts if watch is self._drift and self._reference is not None else ()
        watch.observe(
            interaction.interaction_id,
            score,
            moment,
            closed=self._desk.is_closed,
            announce=lambda change: self._desk.announce(watch, change, texts),
        )

    def _look_for_reference(self) -> None:
        moment = time.monotonic()
        if self._newest is not None and moment - self._looked > LOOK_FOR_REFERENCE_SECONDS:
            self._looked = moment
            self._manifest = self._newest() or self._manifest
        if self._manifest is None or self._manifest == self._taken:
            return
        self._taken = self._manifest  # a reference that cannot be used is tried once
        if self._reference is not None and self._reference.id == self._manifest.id:
            return
        reference = load_reference(self._store.artifacts, self._manifest)
        if reference.embedder_id != self._embedder.id:
            raise InputError(
                "the drift reference was embedded by another embedder",
                seen=reference.embedder_id,
                rule=f"this monitor embeds with {self._embedder.id}",
                fix="build the dataset's reference again",
            )
        self._reference = reference
        self._drift = drift_watch(self._store, reference.id, reference.calibration)
        self._desk.retire(self._drift)


def drift_watch(store: Store, reference_id: str, calibration: tuple[float, ...] = ()) -> Watch:
    """The watch on how far prompts lie from the reference."""
    title = "Prompts are unlike the reference"
    return Watch(DRIFT_KEY, title, state_folder(store), calibration=calibration, reference=reference_id)


def refusal_watch(store: Store) -> Watch:
    """The watch on the share of refused requests, against the stream's own past."""
    return Watch(REFUSAL_KEY, "More requests are refused than before", state_folder(store), warmup=REFUSAL_WARMUP)


def state_folder(store: Store) -> Path:
    """Where the detectors' states lie: `<home>/monitor`."""
    return store.artifacts.root.parent / "monitor"
