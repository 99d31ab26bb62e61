"""Paired intervals cover what they should and say so when they cannot."""

from __future__ import annotations

import numpy as np
import pytest

from infra.errors import InputError
from training.paired import difference


def test_clear_differences_are_decided_and_noise_is_not():
    draw = np.random.default_rng(2)
    assert difference(list(draw.normal(-1.0, 0.3, 24))).decided == -1
    assert difference(list(draw.normal(1.0, 0.3, 24))).decided == 1
    assert difference([-1.0, 1.0] * 12).decided == 0


def test_intervals_cover_the_truth_about_as_often_as_they_claim():
    draw = np.random.default_rng(3)
    for size in (4, 20):
        found = [difference(list(draw.normal(0.5, 1.0, size))) for _ in range(300)]
        covered = sum(one.low <= 0.5 <= one.high for one in found) / len(found)
        assert 0.89 < covered < 0.99


def test_weights_count():
    assert difference([1.0, 3.0], [3.0, 1.0]).mean == pytest.approx(1.5)


def test_a_single_pair_has_no_interval_and_none_is_an_error():
    one = difference([5.0])
    assert (one.mean, one.low, one.high, one.decided, one.method) == (5.0, None, None, 0, "none")
    with pytest.raises(InputError):
        difference([])


def test_few_pairs_use_student_t():
    few = difference([1.0, 2.0, 3.0])
    assert few.method == "t"
    assert few.high - few.mean == pytest.approx(4.303 * 1.0 / 3**0.5)
    equal = difference([1.0] * 4)
    assert (equal.mean, equal.low, equal.decided) == (1.0, None, 0)
