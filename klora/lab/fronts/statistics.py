"""Fronts as figures, and how sure they are.

A front is where a method's balance leads: identity against style. Intervals are bootstrapped over subjects,
as more seeds or styles of one subject are no new evidence about others, or over pairs, which is narrower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
DRAWS = 4000
CONFIDENCE = 0.95
Statistic = Callable[[Numbers], Numbers]
"""From means of some measures [..., measures] to a figure [...]; of a front, [..., balances * measures]."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its confidence interval; the limits are NaN where one unit tells nothing of others."""

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


def resamples(count: int, draws: int = DRAWS, seed: int = 0) -> NDArray[np.int64]:
    """Which of ``count`` units are drawn, with replacement, [draws, count]; the same for every method."""
    return np.random.default_rng(seed).integers(0, count, (draws, count))


def tail(count: int, confidence: float = CONFIDENCE) -> float:
    """Share of the bootstrap distribution outside each end of the interval, for ``count`` units.

    The plain percentile interval is too narrow for few units; its ends are moved outwards as Student's t
    and the bias of the variance demand (Hesterberg, What Teachers Should Know About the Bootstrap, 2015).
    """
    from scipy.stats import norm, t  # type: ignore[import-untyped]

    half = t.ppf((1 + confidence) / 2, count - 1) * math.sqrt(count / (count - 1))
    return float(norm.cdf(-half))


def estimate(per_unit: Numbers, statistic: Statistic, drawn: NDArray[np.int64]) -> Estimate:
    """A statistic of the means over units, with its bootstrap interval.

    ``per_unit`` is [units, measures], ``drawn`` comes from `resamples`. For a paired difference, put
    the measures of both methods side by side and let the statistic subtract.
    """
    value = float(statistic(per_unit.mean(axis=0)))
    count = len(per_unit)
    if count < 2:
        return Estimate(value, math.nan, math.nan)
    made = statistic(per_unit[drawn].mean(axis=1))
    outside = tail(count)
    low, high = np.quantile(made, [outside, 1 - outside])
    return Estimate(value, float(low), float(high))


@dataclass(frozen=True)
class Front:
    """The scores of one method on the pairs of a half.

    ``values`` [units, balances, measures] are means over seeds and, where units are subjects, over styles.
    """

    method: str
    balances: tuple[float, ...]
    measures: tuple[str, ...]
    values: Numbers

    @property
    def flat(self) -> Numbers:
        """Values [units, balances * measures]."""
        return self.values.reshape(len(self.values), -1)

    def mean(self, measure: str) -> Numbers:
        """A measure's mean over all units, [balances]."""
        mean: Numbers = self.values[..., self.measures.index(measure)].mean(axis=0)
        return mean


def area(style: Numbers, identity: Numbers) -> NDArray[np.float64]:
    """Area under a front [...] whose points are [..., balances]: all that some point reaches in both.

    It is 1 where one balance has everything right, and so is a share of what could be reached.
    """
    order = np.argsort(style, axis=-1)
    across, up = np.take_along_axis(style, order, -1), np.take_along_axis(identity, order, -1)
    reached = np.maximum.accumulate(up[..., ::-1], axis=-1)[..., ::-1]
    steps = np.diff(across, axis=-1, prepend=0.0)
    total: NDArray[np.float64] = (steps * reached).sum(axis=-1)
    return total


def _columns(front: Front, means: Numbers, measure: str) -> Numbers:
    """One measure [..., balances] of flat means."""
    place = front.measures.index(measure)
    return means.reshape(*means.shape[:-1], len(front.balances), len(front.measures))[..., place]


def area_of(front: Front) -> Statistic:
    """The statistic: the area under a front."""
    return lambda means: area(_columns(front, means, "style"), _columns(front, means, "identity"))


def measure_at(front: Front, measure: str, balance: float) -> Statistic:
    """The statistic: a measure at one balance; ``harmonic`` is that of identity and style."""
    place = front.balances.index(balance)

    def at(means: Numbers) -> Numbers:
        if measure != "harmonic":
            return _columns(front, means, measure)[..., place]
        both = [_columns(front, means, one)[..., place] for one in ("identity", "style")]
        return harmonic_mean(np.stack(both, axis=-1))

    return at


def best_balance(front: Front) -> float:
    """The balance with the highest harmonic mean; among equals that nearest to 0."""
    means = np.stack([front.mean("identity"), front.mean("style")], axis=-1)
    reached = harmonic_mean(means)
    places = np.flatnonzero(reached >= reached.max() - 1e-12)
    return min((front.balances[place] for place in places), key=abs)


def figure(front: Front, statistic: Statistic, draws: int = DRAWS) -> Estimate:
    """A figure of a front with its interval."""
    return estimate(front.flat, statistic, resamples(len(front.values), draws))


def paired(one: Front, statistic: Statistic, other: Front, others: Statistic, draws: int = DRAWS) -> Estimate:
    """A figure of one front minus a figure of another on the same units, with its interval."""
    if len(one.values) != len(other.values):
        raise ValueError(f"{one.method} has {len(one.values)} units and {other.method} {len(other.values)}")
    width = one.flat.shape[1]

    def apart(means: Numbers) -> Numbers:
        return statistic(means[..., :width]) - others(means[..., width:])

    both = np.concatenate([one.flat, other.flat], axis=1)
    return estimate(both, apart, resamples(len(both), draws))


def units(values: Numbers, owners: Sequence[str]) -> Numbers:
    """Values [pairs, ...] averaged over all pairs of each owner, in order of appearance."""
    names = np.array(owners)
    return np.stack([values[names == name].mean(axis=0) for name in dict.fromkeys(owners)])
