"""The betting martingale: false alarms within the proved bound, quick detection, redelivery."""

from __future__ import annotations

import numpy as np

from monitoring.martingale import BETS, MAX_RUN, is_strange, new_run, observe, p_value, tie_break

ALPHA = 0.05


def alarm_after(scores, calibration, name, alpha):
    """How many observations until the wealth reaches 1/alpha, or None."""
    state = new_run(calibration)
    for number, score in enumerate(scores, start=1):
        state = observe(state, f"{name}-{number}", float(score), keep=50, window=15)
        if state.wealth >= 1 / alpha:
            return number
    return None


def test_false_alarms_stay_within_the_bound():
    """400 exchangeable streams of 100 at alpha 0.05: at most 20 expected, 32 with binomial slack (p < 0.01)."""
    alarms = 0
    for seed in range(400):
        scores = np.random.default_rng(seed).standard_normal(140)
        alarms += alarm_after(scores[40:], scores[:40], f"calm{seed}", ALPHA) is not None
    assert alarms <= 32


def test_false_alarms_with_ties_stay_within_the_bound():
    """Refusals are 0 or 1: nearly every score is tied, so the bound rests on the random tie-break."""
    alarms = 0
    for seed in range(200):
        refused = np.random.default_rng(seed).random(150) < 0.1
        alarms += alarm_after(refused, (), f"ties{seed}", ALPHA) is not None
    assert alarms <= 18


def test_bets_alone_keep_the_bound():
    """On 20,000 streams of uniform p-values the wealth reaches 1,000 in at most 0.1 % plus slack, as Ville says."""
    rng, bets = np.random.default_rng(5), np.array(BETS)
    stakes, highest = np.zeros((20_000, len(BETS))), np.zeros(20_000)
    for n in range(1, 201):
        p = 1 - rng.random(20_000)
        stakes = (stakes + 1 / (n * (n + 1) * len(BETS))) * bets * p[:, None] ** (bets - 1)
        highest = np.maximum(highest, stakes.sum(axis=1) + 1 / (n + 1))
    assert (highest >= 1000).mean() <= 0.001 + 3 * (0.001 / 20_000) ** 0.5


def test_a_shift_is_found_within_fifteen_observations_early_and_late():
    delays = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        before = (10, 200)[seed % 2]
        scores = np.concatenate([rng.standard_normal(before), rng.standard_normal(40) + 4])
        found = alarm_after(scores, rng.standard_normal(100), f"shift{seed}", 0.001)
        assert found is not None
        delays.append(found - before)
    assert max(delays) <= 15
    assert min(delays) >= 1


def test_a_redelivered_observation_changes_nothing():
    once = observe(new_run([0.1, 0.2]), "a", 0.9, keep=5, window=5)
    assert observe(once, "a", 0.9, keep=5, window=5) is once


def test_the_stretch_starts_where_the_wealth_was_lowest():
    rng = np.random.default_rng(3)
    state = new_run(rng.standard_normal(200))
    for number in range(60):
        state = observe(state, f"calm{number}", float(rng.standard_normal()), keep=100, window=15)
    for number in range(8):
        state = observe(state, f"odd{number}", 6.0, keep=100, window=15)
    ids = [one.id for one in state.stretch]
    assert ids[-8:] == [f"odd{number}" for number in range(8)]
    assert len(ids) < 40
    assert state.lowest < state.wealth
    assert state.recent[-8:] == (True,) * 8


def test_p_values_are_smoothed_ranks():
    scores = (0.1, 0.2, 0.2, 0.5)
    assert p_value(scores, 0.9, 1.0) == 1 / 5
    assert p_value(scores, 0.2, 1.0) == 4 / 5
    assert p_value(scores, 0.2, 0.5) == (1 + 0.5 * 3) / 5
    assert 0 < tie_break("any") <= 1
    assert tie_break("any") == tie_break("any") != tie_break("other")


def test_strange_means_rarer_than_one_in_twenty():
    assert is_strange(range(100), 96)
    assert not is_strange(range(100), 90)
    assert not is_strange((), 5)
    assert MAX_RUN > 1000
