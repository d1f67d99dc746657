"""Whether files and one calibration pass tell how well a pair will do, and which balance suits it.

Everything is fitted on the development half of a world, or of both together, and tried on the test half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from klora.files import read_lora
from klora.lab import checkpoint
from klora.lab.fronts.branches import pair_of
from klora.lab.fronts.calibration import effects
from klora.lab.fronts.compatibility import (
    FEATURES,
    Automatic,
    Index,
    choose_automatic,
    features,
    rank_correlation,
    reached,
)
from klora.lab.fronts.methods import Method
from klora.lab.fronts.store import Sampling
from klora.lab.fronts.study import Study
from klora.lab.pairs import Pair

Numbers = NDArray[np.float64]
OUTCOME = "both"
"""What is predicted: the share of a pair's pictures with subject and style right."""


@dataclass(frozen=True)
class Known:
    """What is known of the pairs of a half: features [pairs, features], outcomes [pairs, balances]."""

    features: Numbers
    outcomes: Numbers


def together(worlds: Sequence[Known]) -> Known:
    """The pairs of several worlds as those of one."""
    return Known(
        np.concatenate([world.features for world in worlds]),
        np.concatenate([world.outcomes for world in worlds]),
    )


@dataclass(frozen=True)
class Prediction:
    """How well prediction does on pairs that it was not fitted on."""

    alone: dict[str, float]
    """Rank correlation of each feature with the outcome, over the pairs of both halves."""
    index: float
    """That of the index, over the pairs of the test half."""
    automatic: Automatic
    fixed_reached: float
    """Mean outcome on the test half at the balance that is best on the development half."""
    automatic_reached: float
    """The same at each pair's own balance."""


def features_of(sampling: Sampling, pairs: Sequence[Pair]) -> Numbers:
    """The features of some pairs, [pairs, features]; one calibration pass each."""
    model = checkpoint.model_of(sampling.weights)
    rows = []
    for pair in pairs:
        branches = pair_of(model.denoiser, *map(read_lora, pair.files))
        rows.append(features(branches, effects(model, branches, pair.prompt, sampling.steps)))
    return np.stack(rows)


def known_of(study: Study, method: Method) -> Known:
    """Features and outcomes of a study's pairs by one method whose scores are kept."""
    front = study.front(method, "pair")
    outcomes = front.values[..., front.measures.index(OUTCOME)]
    return Known(features_of(study.store.sampling, study.pairs), outcomes)


def predict(development: Known, test: Known, balances: Sequence[float]) -> Prediction:
    """Fit on one half, try on the other."""
    best = int(development.outcomes.mean(axis=0).argmax())
    index = Index.fit(development.features, development.outcomes[:, best])
    every = np.concatenate([development.features, test.features])
    came_out = np.concatenate([development.outcomes, test.outcomes])[:, best]
    automatic = choose_automatic(development.features, development.outcomes, balances)
    return Prediction(
        {name: rank_correlation(every[:, place], came_out) for place, name in enumerate(FEATURES)},
        rank_correlation(index.of(test.features), test.outcomes[:, best]),
        automatic,
        float(test.outcomes[:, best].mean()),
        reached(test.outcomes, automatic.of(test.features, balances)),
    )


def told(found: Prediction) -> str:
    """A prediction as Markdown."""
    rows = [f"| {name} | {value:+.2f} |" for name, value in found.alone.items()]
    own = found.automatic
    return "\n".join(
        [
            "| feature | rank correlation with the outcome |",
            "|---|---|",
            *rows,
            f"| **index, on the test half** | **{found.index:+.2f}** |",
            "",
            f"A balance of its own for each pair ({own.start:g} {own.slope:+g} x {FEATURES[own.feature]}) "
            f"reaches {found.automatic_reached:.3f} on the test half, "
            f"the best fixed one {found.fixed_reached:.3f}.",
        ]
    )
