"""Mean scores of a judge with the share that was judged and a 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from pydantic import Field

from infra.identity import Value

LOWEST, HIGHEST = 1.0, 5.0  # the scale of a verdict


class MeanScore(Value):
    """What one judge says of one criterion over a set of interactions."""

    judge: str = Field(description="`name@version` of the judge.")
    criterion: str = Field(description="What was judged.")
    mean: float | None = Field(description="Weighted mean score, 1 to 5; None when nothing was judged.")
    low: float | None = Field(description="Lower end of the 95 % interval; None with fewer than two verdicts.")
    high: float | None = Field(description="Upper end of the 95 % interval; None with fewer than two verdicts.")
    judged: int = Field(ge=0, description="Interactions with a verdict.")
    unscored: int = Field(ge=0, description="Interactions that the judge could not judge; not part of the mean.")
    total: int = Field(ge=0, description="Interactions in the set, judged or not.")


class Sampled(Value):
    """A score and the probability with which its interaction was chosen for judging."""

    score: float = Field(description="1 to 5.")
    probability: float = Field(gt=0, le=1, description="1 when all were judged.")


def weighted_mean(sample: Sequence[Sampled]) -> tuple[float | None, float | None, float | None]:
    """Mean, lower and upper end of its 95 % interval; None where the sample is too small (0 and 1 scores).

    The mean is Hájek's ratio estimator Σwy/Σw with w = 1/probability, so interactions judged as a rare sample
    count for those that were not chosen. Its variance is the linearised one, n/(n−1) · Σ(w(y−mean))² / (Σw)²
    (Särndal, Swensson and Wretman, Model Assisted Survey Sampling, 1992, section 5.7, for unequal probabilities);
    the interval is mean ± t(n−1)·√variance, cut to the scale 1 to 5. Scores that are all equal give an interval
    of no width: it then says only that the sample does not vary.
    """
    if not sample:
        return None, None, None
    weights = [1 / one.probability for one in sample]
    total = math.fsum(weights)
    mean = math.fsum(weight * one.score for weight, one in zip(weights, sample, strict=True)) / total
    count = len(sample)
    if count == 1:
        return mean, None, None
    squares = math.fsum((weight * (one.score - mean)) ** 2 for weight, one in zip(weights, sample, strict=True))
    half = t_quantile(count - 1) * math.sqrt(count / (count - 1) * squares) / total
    return mean, max(LOWEST, mean - half), min(HIGHEST, mean + half)


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with `freedom` ≥ 1 degrees of freedom.

    Exact for 1 and 2; from 3 on the asymptotic expansion 26.7.5 of Abramowitz and Stegun, Handbook of Mathematical
    Functions (1964), whose error there is below 0.3 %.
    """
    level = 0.975
    if freedom == 1:
        return math.tan(math.pi * (level - 0.5))
    if freedom == 2:
        return (2 * level - 1) * math.sqrt(2 / (1 - (2 * level - 1) ** 2))
    z = NormalDist().inv_cdf(level)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / freedom**power for power, term in enumerate(terms, start=1)))
