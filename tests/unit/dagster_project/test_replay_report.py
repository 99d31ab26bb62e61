"""A replay beside the original: pairs, weights, what was not judged, and intervals."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from dagster_project.replay_report import compared
from store.replays import ReplayResult
from streams.events import EvaluationRecorded, InteractionRecorded, Unscored, Verdict

TIME = datetime(2025, 3, 4, tzinfo=UTC)


def said(judge: str, score: float | None, probability: float = 1) -> EvaluationRecorded:
    one = (
        Unscored(criterion="relevance", reason="too short")
        if score is None
        else Verdict(criterion="relevance", score=score, justification="x")
    )
    return EvaluationRecorded(interaction_id="i", judge=judge, scores=(one,), sampled_with=probability)


def result(
    number: int, new: float | None, *originals: EvaluationRecorded, answered: bool = False, judge: str = "new@1"
) -> ReplayResult:
    answer = InteractionRecorded(
        interaction_id="r", conversation_id="r", prompt="p", response="x", finish_reason="stop"
    )
    return ReplayResult(
        interaction_id=f"i{number}",
        time=TIME,
        originals=originals,
        answer=answer if answered else None,
        evaluation=said(judge, new),
    )


def test_only_what_both_judged_is_a_pair_and_the_rest_is_counted():
    results = [
        result(0, 4, said("old@1", 2)),
        result(1, 5, said("old@1", 2)),
        result(2, None, said("old@1", 3)),
        result(3, 4, said("old@1", None)),
        result(4, 4),
    ]
    [row] = compared(results)
    assert (row["original_judge"], row["criterion"], row["pairs"]) == ("old@1", "relevance", 2)
    assert (row["original_mean"], row["replay_mean"], row["mean_difference"]) == (2, 4.5, 2.5)
    assert (row["judged"], row["judged_share"], row["originally_judged_share"]) == (4, 0.8, 0.6)


def test_originals_that_were_a_sample_count_for_those_that_were_not_chosen():
    [row] = compared([result(0, 5, said("old@1", 1)), result(1, 2, said("old@1", 2, probability=0.25))])
    assert row["mean_difference"] == pytest.approx(4 / 5)


def test_each_judge_has_its_row_unless_the_answers_are_new():
    originals = (said("old@1", 2), said("new@1", 3))
    assert [row["original_judge"] for row in compared([result(0, 4, *originals)])] == ["new@1", "old@1"]
    [row] = compared([result(0, 4, *originals, answered=True)])
    assert (row["original_judge"], row["mean_difference"]) == ("new@1", 1)


def test_intervals_hold_the_difference_and_stay_on_the_scale():
    few = compared([result(0, 5, said("old@1", 1)), result(1, 1, said("old@1", 5))])[0]
    assert (few["low"], few["mean_difference"], few["high"], few["interval"]) == (-4, 0, 4, "t")
    many = compared([result(number, 3 + number % 2, said("old@1", 3)) for number in range(40)])[0]
    assert 0 < many["low"] < many["mean_difference"] < many["high"] < 1
    assert many["interval"] == "bootstrap"
    one = compared([result(0, 5, said("old@1", 4))])[0]
    assert (one["mean_difference"], one["low"], one["interval"]) == (1, None, "none")


def test_without_a_pair_nothing_is_claimed():
    assert compared([]) == []
    assert compared([result(0, 4)]) == []
    [row] = compared([result(0, None, said("old@1", 4))])
    assert (row["pairs"], row["mean_difference"], row["low"]) == (0, None, None)
