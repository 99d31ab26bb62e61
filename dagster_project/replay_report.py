"""A replay beside what happened live: paired by interaction, with intervals and the share that was judged."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from store.replays import ReplayResult, ReplayState
from streams.events import EvaluationRecorded, Verdict
from training.paired import Difference, difference

WIDEST = 4.0
Scores = Mapping[str, float]
"""Criterion to score, 1 to 5, of what could be judged."""


def summary(state: ReplayState) -> dict[str, Any]:
    """A replay as it is listed."""
    replay = state.replay
    return {
        "name": replay.name,
        "topic": replay.window.topic,
        "from": replay.window.start.isoformat(),
        "to": replay.window.end.isoformat(),
        "judge": replay.judge,
        "prompt": replay.release.prompt if replay.release else None,
        "model": replay.release.model if replay.release else None,
        "adapter": replay.release.adapter if replay.release else None,
        "complete": state.finished_at is not None,
        "replayed": state.results,
        "passed_over": state.passed_over,
    }


def compared(results: Sequence[ReplayResult]) -> list[dict[str, Any]]:
    """One row per original judge and criterion that either side judged, by judge and criterion.

    `mean_difference` is the replay's score minus the original's over the interactions that both judged, weighted by
    the inverse probability with which the original judge saw them, with its 95 % interval (`training.paired`), cut to
    what differences of scores from 1 to 5 can be. Where
    the interactions were answered again, only the same judge's originals are compared.
    """
    pairs: dict[tuple[str, str], list[tuple[float, float, float]]] = defaultdict(list)
    seen: dict[tuple[str, str], int] = defaultdict(int)
    for result in results:
        new = _scores(result.evaluation)
        for original in result.originals:
            if result.answer is not None and original.judge != result.evaluation.judge:
                continue
            old = _scores(original)
            for criterion in {*old, *new}:
                key = original.judge, criterion
                seen[key] += criterion in old
                if criterion in old and criterion in new:
                    pairs[key].append((old[criterion], new[criterion], 1 / original.sampled_with))
                else:
                    pairs[key] += []
    replayed = [_scores(result.evaluation) for result in results]
    return [
        _row(key, its_pairs, judged=sum(key[1] in one for one in replayed), judged_before=seen[key], total=len(results))
        for key, its_pairs in sorted(pairs.items())
    ]


def _row(
    key: tuple[str, str],
    pairs: Sequence[tuple[float, float, float]],
    *,
    judged: int,
    judged_before: int,
    total: int,
) -> dict[str, Any]:
    found = _difference(pairs)
    weights = sum(weight for _, _, weight in pairs)
    return {
        "criterion": key[1],
        "original_judge": key[0],
        "pairs": len(pairs),
        "original_mean": sum(old * weight for old, _, weight in pairs) / weights if pairs else None,
        "replay_mean": sum(new * weight for _, new, weight in pairs) / weights if pairs else None,
        "mean_difference": found.mean if found else None,
        "low": None if found is None or found.low is None else max(-WIDEST, found.low),
        "high": None if found is None or found.high is None else min(WIDEST, found.high),
        "interval": found.method if found else "none",
        "judged": judged,
        "judged_share": judged / total,
        "originally_judged_share": judged_before / total,
    }


def _difference(pairs: Sequence[tuple[float, float, float]]) -> Difference | None:
    if not pairs:
        return None
    return difference([new - old for old, new, _ in pairs], [weight for _, _, weight in pairs])


def _scores(evaluation: EvaluationRecorded) -> Scores:
    return {score.criterion: score.score for score in evaluation.scores if isinstance(score, Verdict)}
