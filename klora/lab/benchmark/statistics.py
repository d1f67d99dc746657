"""Means and their uncertainty.

What is drawn anew is the subject: more seeds or styles of one subject are no new evidence about others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.float64]
Statistic = Callable[[Numbers], Numbers]
"""From means of some measures [..., measures] to a figure [...]."""

DRAWS = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure with its confidence interval; the limits are NaN where one subject tells nothing of others."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0

    def as_json(self) -> dict[str, float | None]:
        """Plain data, with None for NaN."""
        return {
            name: None if math.isnan(number) else number
            for name, number in (("value", self.value), ("low", self.low), ("high", self.high))
        }


def harmonic_mean(means: Numbers) -> Numbers:
    """Harmonic mean of the last axis [..., n], not negative; 0 where one is 0."""
    positive = np.all(means > 0, axis=-1)
    inverse: Numbers = np.where(positive, (1 / np.where(means > 0, means, 1)).mean(axis=-1), np.inf)
    result: Numbers = 1 / inverse
    return result


def by_subject(values: Tensor, subjects: Sequence[str]) -> Numbers:
    """Means [subjects] of values [pairs, seeds] over all pairs of each subject, in order of appearance."""
    per_pair = values.double().mean(dim=1).numpy()
    owners = np.array(subjects)
    return np.array([per_pair[owners == name].mean() for name in dict.fromkeys(subjects)])


def resamples(count: int, draws: int = DRAWS, seed: int = 0) -> NDArray[np.int64]:
    """Which of ``count`` subjects are drawn, with replacement, [draws, count]; the same for every method."""
    return np.random.default_rng(seed).integers(0, count, (draws, count))


def tail(count: int, confidence: float = CONFIDENCE) -> float:
    """Share of the bootstrap distribution outside each end of the interval, for ``count`` subjects.

    The plain percentile interval is too narrow for few subjects; its ends are moved outwards as Student's t
    and the bias of the variance demand (Hesterberg, What Teachers Should Know About the Bootstrap, 2015).
    """
    from scipy.stats import norm, t  # type: ignore[import-untyped]

    half = t.ppf((1 + confidence) / 2, count - 1) * math.sqrt(count / (count - 1))
    return float(norm.cdf(-half))


def estimate(per_subject: Numbers, statistic: Statistic, drawn: NDArray[np.int64]) -> Estimate:
    """A statistic of the means over subjects, with its bootstrap interval.

    ``per_subject`` is [subjects, measures], ``drawn`` comes from `resamples`. For a paired difference, put
    the measures of both methods side by side and let the statistic subtract.
    """
    value = float(statistic(per_subject.mean(axis=0)))
    count = len(per_subject)
    if count < 2:
        return Estimate(value, math.nan, math.nan)
    made = statistic(per_subject[drawn].mean(axis=1))
    outside = tail(count)
    low, high = np.quantile(made, [outside, 1 - outside])
    return Estimate(value, float(low), float(high))


def first(means: Numbers) -> Numbers:
    """The only measure itself."""
    return means[..., 0]


def difference(statistic: Statistic) -> Statistic:
    """The statistic of the first half of the measures minus that of the second half."""

    def subtract(means: Numbers) -> Numbers:
        half = means.shape[-1] // 2
        return statistic(means[..., :half]) - statistic(means[..., half:])

    return subtract
