"""Paired differences with intervals: the same rows or requests under two conditions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from infra.errors import InputError
from infra.identity import Value

RESAMPLES = 10_000
FEW = 8
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447)
"""97.5 % quantiles of Student's t with 1 to 6 degrees of freedom."""


class Difference(Value):
    """A mean paired difference and its 95 % interval."""

    mean: float = Field(description="Mean of the differences.")
    low: float | None = Field(description="Lower end of the 95 % interval; None when there is none.")
    high: float | None = Field(description="Upper end.")
    pairs: int = Field(ge=1, description="Number of pairs.")
    method: str = Field(description="How the interval was made: 'bootstrap', 't' or 'none'.")

    @property
    def decided(self) -> int:
        """1 or -1 when the interval lies above or below zero; 0 when it contains zero or there is none."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)


def difference(values: Sequence[float], weights: Sequence[float] | None = None, *, seed: int = 7) -> Difference:
    """The (weighted) mean of paired differences with a 95 % interval.

    From `FEW` pairs on, the percentile bootstrap over pairs (Efron and Tibshirani 1993, chapter 13); below that, where
    resampling understates the spread, Student's t of the pairs' own spread, unweighted. One pair has no interval, nor
    have a few equal ones: they say nothing about the spread. Raises `InputError` without pairs.
    """
    if not values:
        raise InputError("no pairs to compare")
    data = np.asarray(values, float)
    shares = np.ones(len(data)) if weights is None else np.asarray(weights, float)
    mean = float(data @ shares / shares.sum())
    if len(data) == 1 or (len(data) < FEW and data.std() < 1e-12):
        return Difference(mean=mean, low=None, high=None, pairs=len(data), method="none")
    if len(data) < FEW:
        reach = T_975[len(data) - 2] * float(data.std(ddof=1)) / len(data) ** 0.5
        return Difference(mean=mean, low=mean - reach, high=mean + reach, pairs=len(data), method="t")
    picks = np.random.default_rng(seed).integers(0, len(data), (RESAMPLES, len(data)))
    means = (data[picks] * shares[picks]).sum(axis=1) / shares[picks].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Difference(mean=mean, low=float(low), high=float(high), pairs=len(data), method="bootstrap")
