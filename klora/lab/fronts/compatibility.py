"""How well a pair will do, from its two files and one calibration pass, and what balance suits it.

Both are judged by what came out: the index by its rank correlation over pairs, the balance by whether it
beats the best fixed one on the half that it was not chosen on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from klora.lab.fronts.branches import Branch, Pair
from klora.lab.fronts.calibration import Effects

Numbers = NDArray[np.float64]

FEATURES: tuple[str, ...] = (
    "log strength ratio",
    "log strength",
    "overlap",
    "agreement",
    "shared layers",
    "log effect ratio",
    "log effect ratio, late less early",
)
"""Style over content, in norms of dW; both together; the share of content's energy in the style's row space
beyond chance; the cosine of the two deltas; the share of layers that both change; the same ratio in what they
do to outputs; and how it moves from the first half of the steps to the second."""
RIDGE = 1.0
"""Ridge of the index's regression, on features of deviation 1."""


def _deltas(branch: Branch) -> tuple[torch.Tensor, torch.Tensor]:
    first, down = branch.ranks[0], branch.down.flatten(1)
    return branch.up[:, :first] @ down[:first], branch.up[:, first:] @ down[first:]


def features(pair: Pair, effects: Effects) -> Numbers:
    """`FEATURES` of a pair, [features]."""
    energies, overlaps, product = np.zeros(2), [], 0.0
    for branch in pair.branches.values():
        content, style = _deltas(branch)
        energy = np.array([float(content.square().sum()), float(style.square().sum())])
        energies += energy
        product += float((content * style).sum())
        if all(branch.ranks) and energy[0] > 0:
            overlaps.append((_beyond_chance(branch, content), energy[0]))
    shared = [all(branch.ranks) for branch in pair.branches.values()]
    strengths = np.sqrt(np.maximum(energies, 1e-12))
    weights = np.array([energy for _, energy in overlaps])
    overlap = float(np.average([value for value, _ in overlaps], weights=weights)) if overlaps else 0.0
    early, late = (_log_ratio(part) for part in np.array_split(effects.norms, 2))
    return np.array(
        [
            math.log(strengths[1] / strengths[0]),
            math.log(strengths.prod()) / 2,
            overlap,
            product / float(strengths.prod()),
            float(np.mean(shared)),
            _log_ratio(effects.norms),
            late - early,
        ]
    )


def _log_ratio(norms: Numbers) -> float:
    """Log of style's over content's effects [..., 2], all squares added."""
    squares = np.square(norms).sum(axis=tuple(range(norms.ndim - 1)))
    return float(np.log(max(squares[1], 1e-12) / max(squares[0], 1e-12)) / 2)


def _beyond_chance(branch: Branch, content: torch.Tensor) -> float:
    """Share of content's energy in the style's row space, less what a space of that size holds by chance."""
    style = branch.down.flatten(1)[branch.ranks[0] :]
    basis, _ = torch.linalg.qr(style.T)
    inside = float((content @ basis).square().sum() / content.square().sum())
    return inside - min(1.0, len(style) / style.shape[1])


@dataclass(frozen=True)
class Index:
    """A linear index from 0 to 100, fitted on pairs whose outcome is known."""

    mean: Numbers
    deviation: Numbers
    weights: Numbers
    low: float
    high: float

    @classmethod
    def fit(cls, known: Numbers, outcome: Numbers) -> Index:
        """Ridge regression of outcomes [pairs] on features [pairs, features]."""
        mean, deviation = known.mean(0), np.maximum(known.std(0), 1e-9)
        scaled = (known - mean) / deviation
        gram = scaled.T @ scaled + RIDGE * np.eye(known.shape[1])
        weights = np.linalg.solve(gram, scaled.T @ (outcome - outcome.mean()))
        said = scaled @ weights
        return cls(mean, deviation, weights, float(said.min()), float(said.max()))

    def of(self, new: Numbers) -> Numbers:
        """The index of features [pairs, features], 0 to 100, [pairs]."""
        said = ((new - self.mean) / self.deviation) @ self.weights
        width = max(self.high - self.low, 1e-9)
        index: Numbers = np.clip(100 * (said - self.low) / width, 0, 100)
        return index


def rank_correlation(index: Numbers, outcome: Numbers) -> float:
    """Spearman's rho; 0 where one of the two is constant."""
    if np.ptp(index) == 0 or np.ptp(outcome) == 0:
        return 0.0
    return float(spearmanr(index, outcome).statistic)


@dataclass(frozen=True)
class Automatic:
    """A balance for each pair: ``start + slope * feature``, the feature less its mean where it was chosen."""

    feature: int
    slope: float
    start: float
    centre: float

    def of(self, known: Numbers, balances: Sequence[float]) -> NDArray[np.int64]:
        """The places of the nearest balances for features [pairs, features], [pairs]."""
        asked = self.start + self.slope * (known[:, self.feature] - self.centre)
        places: NDArray[np.int64] = np.abs(np.array(balances) - asked[:, None]).argmin(axis=1)
        return places


SLOPES: tuple[float, ...] = (-0.8, -0.4, -0.2, -0.1, 0.0, 0.1, 0.2, 0.4, 0.8)


def reached(outcomes: Numbers, places: NDArray[np.int64]) -> float:
    """Mean outcome [pairs, balances] at each pair's own balance."""
    return float(outcomes[np.arange(len(outcomes)), places].mean())


def choose_automatic(known: Numbers, outcomes: Numbers, balances: Sequence[float]) -> Automatic:
    """The best feature, slope and start for outcomes [pairs, balances]; slope 0 is the best fixed balance."""
    centres = known.mean(axis=0)
    candidates = [
        Automatic(feature, slope, start, float(centres[feature]))
        for slope in sorted(SLOPES, key=abs)
        for feature in range(known.shape[1])
        for start in balances
    ]
    return max(candidates, key=lambda one: reached(outcomes, one.of(known, balances)))
