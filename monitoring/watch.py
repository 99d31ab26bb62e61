"""A watched stream: a detector with its state on disk, and the one alert it may have open.

The state of a watch is a JSON file under `<home>/monitor/`, shared by all monitors of one machine through a file
lock and written after the alert it led to, so that a crash in between repeats the same alert (same id, same event id)
instead of losing it. Monitors on several machines each watch their own share of the traffic.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from pydantic import Field

from infra.artifacts import write_atomic
from infra.identity import Value, content_id, short
from infra.locking import exclusive
from monitoring import martingale
from monitoring.martingale import Observed, RunState
from streams.events import AlertChanged

ALPHA = 0.001
STRETCH = 200
RECOVERY = 15
STILL_STRANGE = 2
MAX_EVIDENCE = 50


class OpenAlert(Value):
    """The alert that a watch has open."""

    alert_id: str = Field(description="Id of the alert.")
    opened_at: datetime = Field(description="When it opened, UTC.")
    evidence: tuple[Observed, ...] = Field(description="What it rests on, oldest first.")
    since: int = Field(0, ge=0, description="Observations since it opened.")


class WatchState(Value):
    """Everything a watch needs to go on after a restart."""

    run: RunState = Field(description="The detector's run.")
    alert: OpenAlert | None = Field(None, description="The open alert.")


class Change(Value):
    """What one observation did to the alert of a watch."""

    state: str = Field(description="'open' (new or updated) or 'resolved'.")
    alert: OpenAlert = Field(description="The alert.")
    wealth: float = Field(description="The martingale when it changed.")
    note: str = Field(description="Why it changed.")


class Watch:
    """One stream of observations with a name, a calibration and a false-alarm bound `alpha` per run."""

    def __init__(
        self,
        key: str,
        title: str,
        folder: Path,
        *,
        calibration: Sequence[float] = (),
        reference: str = "",
        warmup: int = 0,
    ) -> None:
        """`warmup`: without a reference, how many observations a run takes as its calibration before it bets."""
        self.key = key
        self.title = title
        self._calibration = tuple(calibration)
        self._warmup = warmup
        self._reference = short(reference) or "own past"
        self._file = folder / f"{short(content_id('watch', [key, reference]), 16)}.json"
        self._thread = threading.Lock()

    @property
    def threshold(self) -> float:
        """Wealth at which an alert opens: 1/alpha."""
        return 1 / ALPHA

    @property
    def detector(self) -> str:
        """Name of the detector with its settings."""
        size = len(self._calibration) or self._warmup
        return f"conformal-martingale(alpha={ALPHA:g}, reference={self._reference}, n={size})"

    def observe(
        self,
        identity: str,
        score: float,
        time: datetime,
        *,
        closed: Callable[[str], bool],
        announce: Callable[[Change], object],
    ) -> None:
        """Take one observation in; call `announce` when the alert opens, changes or is resolved.

        `closed(alert_id)` says whether a person resolved the open alert meanwhile. A redelivered observation changes
        nothing.
        """
        with self._thread, exclusive(self._file.with_suffix(".lock")):
            state = self.load()
            if identity in state.run.seen:
                return
            if state.alert is not None and closed(state.alert.alert_id):
                state = self._fresh(state.run)
            state, change = self._step(state, identity, score, time)
            if change is not None:
                announce(change)
            write_atomic(self._file, state.model_dump_json().encode())

    def load(self) -> WatchState:
        """The state on disk, or that of a detector that has seen nothing."""
        if not self._file.exists():
            return WatchState(run=martingale.new_run(self._calibration))
        return WatchState.model_validate_json(self._file.read_bytes())

    def _fresh(self, run: RunState) -> WatchState:
        return WatchState(run=martingale.new_run(self._calibration, run.seen))

    def _step(self, state: WatchState, identity: str, score: float, time: datetime) -> tuple[WatchState, Change | None]:
        if state.alert is not None:
            return self._while_open(state, state.alert, identity, score)
        run = martingale.observe(state.run, identity, score, keep=STRETCH, window=RECOVERY, warmup=self._warmup)
        if run.wealth < self.threshold:
            ended = run.count >= martingale.MAX_RUN
            return (self._fresh(run) if ended else WatchState(run=run)), None
        evidence = told_by(run.stretch, run.scores)
        alert_id = short(content_id("alert", [self.key, evidence[0].id]), 16)
        alert = OpenAlert(alert_id=alert_id, opened_at=time, evidence=evidence)
        note = f"the wealth of the bets reached {run.wealth:.0f} after {run.count} observations"
        return WatchState(run=run, alert=alert), Change(state="open", alert=alert, wealth=run.wealth, note=note)

    def _while_open(
        self, state: WatchState, alert: OpenAlert, identity: str, score: float
    ) -> tuple[WatchState, Change | None]:
        # The run has stopped: nothing is bet while the alert is open, scores are compared with what was normal.
        normal = self._calibration or _without(state.run.scores, alert.evidence)
        strange = martingale.is_strange(sorted(normal), score)
        recent = (*state.run.recent, strange)[-RECOVERY:]
        run = state.run.model_copy(
            update={"recent": recent, "seen": (*state.run.seen, identity)[-martingale.SEEN_KEPT :]}
        )
        since = alert.since + 1
        if since >= RECOVERY and sum(recent) <= STILL_STRANGE:
            note = f"{RECOVERY - sum(recent)} of the last {RECOVERY} are like the reference again"
            change = Change(state="resolved", alert=alert, wealth=run.wealth, note=note)
            return self._fresh(run), change
        if not strange:
            return WatchState(run=run, alert=alert.model_copy(update={"since": since})), None
        p = martingale.p_value(state.run.scores, score, martingale.tie_break(identity))
        newest = Observed(id=identity, score=score, p=p, strange=True)
        evidence = (*alert.evidence, newest)[-STRETCH:]
        alert = alert.model_copy(update={"since": since, "evidence": evidence})
        state = WatchState(run=run, alert=alert)
        if len(evidence) > MAX_EVIDENCE and since % MAX_EVIDENCE:
            return state, None
        note = f"{len(alert.evidence)} observations so far"
        return state, Change(state="open", alert=alert, wealth=run.wealth, note=note)


def told_by(stretch: Sequence[Observed], scores: Sequence[float]) -> tuple[Observed, ...]:
    """The observations of a stretch that the bets won on: p-value at most 0.1 and stranger than the median of the
    run's scores (ascending), or as strange as one of those."""
    middle = scores[len(scores) // 2]
    scores = [one.score for one in stretch if one.p <= 0.1 and one.score > middle]
    least = min(scores) if scores else max(one.score for one in stretch)
    return tuple(one for one in stretch if one.score >= least)


def most_telling(evidence: Sequence[Observed]) -> tuple[str, ...]:
    """Ids of the evidence, smallest p-value first (then strangest, then oldest), at most 50."""
    ranked = sorted(enumerate(evidence), key=lambda pair: (pair[1].p, -pair[1].score, pair[0]))
    return tuple(one.id for _, one in ranked[:MAX_EVIDENCE])


def as_event(watch: Watch, change: Change, **details: object) -> AlertChanged:
    """The alert of a change as it travels; `details` fills slices, release_id, title and the like."""
    critical = change.wealth >= watch.threshold**2 or len(change.alert.evidence) >= MAX_EVIDENCE
    fields: dict[str, object] = {
        "alert_id": change.alert.alert_id,
        "alert_key": watch.key,
        "state": change.state,
        "severity": "critical" if critical else "warning",
        "title": watch.title,
        "detector": watch.detector,
        "statistic": change.wealth,
        "threshold": watch.threshold,
        "interaction_ids": most_telling(change.alert.evidence),
        "opened_at": change.alert.opened_at,
        "note": change.note,
    }
    return AlertChanged.model_validate(fields | details)


def _without(scores: Sequence[float], evidence: Sequence[Observed]) -> list[float]:
    left = list(scores)
    for one in evidence:
        if one.score in left:
            left.remove(one.score)
    return left
