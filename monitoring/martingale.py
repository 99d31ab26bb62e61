"""A change detector with a proved bound on false alarms: conformal p-values and a martingale that bets on them.

Each observation is a real number, larger when stranger. While the observations of a run (with the calibration scores)
are exchangeable, the smoothed ranks p(1), p(2), … are independent and uniform on 0..1 (Vovk, Gammerman and Shafer,
Algorithmic Learning in a Random World, 2005, theorem 8.2). The wealth of a gambler who bets on them is then a
non-negative martingale that starts at 1, so P(it ever reaches 1/alpha) <= alpha (Ville, Étude critique de la notion de
collectif, 1939). The bound holds for a whole run, however long it lasts, and for every run by itself: a run starts
with the detector, after an alert was resolved, and after `MAX_RUN` observations (so that the state stays small).

The gambler mixes over when the change comes and how strong it is: share 1/(n (n + 1)) of the stake enters the game at
observation n, split over the power bets f(p) = e p^(e - 1), e in `BETS`. A late change so costs a factor of about n²
in wealth (a few observations more) instead of the exponential decay of betting from the start.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence

from pydantic import Field

from infra.identity import Value

BETS = (0.1, 0.2, 0.4, 0.7)
MAX_RUN = 5000
WEALTH_CAP = 1e100
SEEN_KEPT = 2000


class Observed(Value):
    """One observation of the current stretch."""

    id: str = Field(description="Interaction.")
    score: float = Field(description="How strange it is; larger is stranger.")
    p: float = Field(ge=0, le=1, description="Smoothed conformal p-value.")
    strange: bool = Field(description="At most 5 % of the baseline are as strange (or stranger).")


class RunState(Value):
    """Where a detector stands; everything it needs to go on after a restart."""

    count: int = Field(0, ge=0, description="Observations of this run.")
    stakes: tuple[float, ...] = Field((0.0,) * len(BETS), description="Wealth in play, by bet.")
    scores: tuple[float, ...] = Field((), description="Calibration and observed scores, ascending.")
    baseline: tuple[float, ...] = Field((), description="What `strange` is measured against, ascending.")
    lowest: float = Field(1.0, description="Lowest wealth of the run.")
    stretch: tuple[Observed, ...] = Field((), description="Observations since the wealth was lowest, oldest first.")
    recent: tuple[bool, ...] = Field((), description="`strange` of the newest observations, oldest first.")
    seen: tuple[str, ...] = Field((), description="Ids observed lately, so that a redelivery counts once.")

    @property
    def wealth(self) -> float:
        """The martingale: stakes in play and the share that has not entered yet."""
        return sum(self.stakes) + 1 / (self.count + 1)


def new_run(calibration: Sequence[float] = (), seen: Sequence[str] = ()) -> RunState:
    """A fresh run. Without calibration the run's own past is all that observations are compared with."""
    ordered = tuple(sorted(calibration))
    return RunState(scores=ordered, baseline=ordered, seen=tuple(seen))


def observe(state: RunState, identity: str, score: float, *, keep: int, window: int, warmup: int = 0) -> RunState:
    """The state after one more observation; the same state when `identity` was observed lately.

    `keep` is how many observations of the stretch are remembered, `window` the length of `recent`. While there are
    fewer than `warmup` scores an observation only calibrates: nothing is bet on it.
    """
    if identity in state.seen:
        return state
    if len(state.scores) < warmup:
        scores = tuple(sorted((*state.scores, score)))
        return state.model_copy(update={"scores": scores, "seen": (*state.seen, identity)[-SEEN_KEPT:]})
    p = p_value(state.scores, score, tie_break(identity))
    count = state.count + 1
    share = 1 / (count * (count + 1) * len(BETS))
    stakes = tuple(
        min(WEALTH_CAP, (stake + share) * bet * p ** (bet - 1)) for stake, bet in zip(state.stakes, BETS, strict=True)
    )
    at = bisect.bisect(state.scores, score)
    strange = is_strange(state.baseline or state.scores, score)
    moved = state.model_copy(
        update={
            "count": count,
            "stakes": stakes,
            "scores": (*state.scores[:at], score, *state.scores[at:]),
            "recent": (*state.recent, strange)[-window:],
            "seen": (*state.seen, identity)[-SEEN_KEPT:],
        }
    )
    if moved.wealth <= state.lowest:
        return moved.model_copy(update={"lowest": moved.wealth, "stretch": ()})
    newest = Observed(id=identity, score=score, p=p, strange=strange)
    return moved.model_copy(update={"stretch": (*state.stretch, newest)[-keep:]})


def p_value(scores: Sequence[float], score: float, tie: float) -> float:
    """Smoothed conformal p-value of a score among earlier ones (ascending): (stranger + tie · (equal + 1)) / (n + 1),
    tie in (0, 1]."""
    low, high = bisect.bisect_left(scores, score), bisect.bisect_right(scores, score)
    return (len(scores) - high + tie * (high - low + 1)) / (len(scores) + 1)


def is_strange(baseline: Sequence[float], score: float) -> bool:
    """Whether at most 5 % of the baseline (or nothing at all, when it is small) are as strange."""
    if not baseline:
        return False
    as_strange = len(baseline) - bisect.bisect_left(baseline, score)
    return as_strange <= 0.05 * len(baseline)


def tie_break(identity: str) -> float:
    """A number in (0, 1], uniform over ids and the same for each id, so that a redelivery changes nothing."""
    return (int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") + 1) / 2**64
