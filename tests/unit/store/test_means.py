"""The weighted mean and its interval, against cases worked out by hand and tabulated quantiles."""

from __future__ import annotations

import math
import random

import pytest

from store.means import Sampled, t_quantile, weighted_mean


def scores(*pairs: tuple[float, float]) -> list[Sampled]:
    return [Sampled(score=score, probability=probability) for score, probability in pairs]


def test_equal_weights_give_the_textbook_t_interval() -> None:
    mean, low, high = weighted_mean(scores((2, 1), (3, 1), (4, 1)))
    # Standard deviation 1, three scores: half width 4.3027 / √3 = 2.484, cut to the scale at the upper end.
    assert mean == pytest.approx(3.0)
    assert low == pytest.approx(1.0)
    assert high == pytest.approx(5.0)


def test_interval_inside_the_scale() -> None:
    mean, low, high = weighted_mean(scores((3, 1), (3, 1), (4, 1), (4, 1)))
    half = 3.182446 * math.sqrt(1 / 3) / 2  # variance of the sample is 1/3
    assert mean == pytest.approx(3.5)
    assert low == pytest.approx(3.5 - half, abs=0.005)
    assert high == pytest.approx(3.5 + half, abs=0.005)


def test_a_rarely_sampled_score_counts_for_those_that_were_not_chosen() -> None:
    mean, low, high = weighted_mean(scores((5, 1.0), (1, 0.25), (1, 0.25)))
    # Weights 1, 4, 4: mean (5 + 4 + 4) / 9; residuals ×weights: 3.5556, -1.7778, -1.7778.
    assert mean == pytest.approx(13 / 9)
    half = 4.302653 * math.sqrt(3 / 2 * (3.555556**2 + 2 * 1.777778**2)) / 9
    assert low == 1.0
    assert high == pytest.approx(13 / 9 + half, abs=1e-4)


def test_nothing_judged_has_no_mean_and_one_verdict_no_interval() -> None:
    assert weighted_mean([]) == (None, None, None)
    assert weighted_mean(scores((4, 0.5))) == (4.0, None, None)


@pytest.mark.parametrize(
    ("freedom", "tabulated"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (10, 2.2281), (30, 2.0423), (1000, 1.9623)],
)
def test_t_quantile_matches_the_table(freedom: int, tabulated: float) -> None:
    assert t_quantile(freedom) == pytest.approx(tabulated, rel=3e-3)


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    chance = random.Random(11)
    population = [(chance.choice((1, 3, 4, 4, 5)), chance.choice((0.05, 0.2))) for _ in range(2000)]
    truth = sum(score for score, _ in population) / len(population)
    held = 0
    for _ in range(300):
        sample = [
            Sampled(score=score, probability=share) for score, share in population if chance.random() < share * 0.25
        ]
        _, low, high = weighted_mean(sample)
        held += low is not None and high is not None and low <= truth <= high
    assert 0.90 <= held / 300 <= 0.99
