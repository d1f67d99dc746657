"""The best fixed weights for adding: a coarse grid, then a finer one, on the development half."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from klora.lab.benchmark.making import Sampling
from klora.lab.benchmark.methods import FIXED_WEIGHTS, method
from klora.lab.benchmark.results import Results, evaluate
from klora.lab.benchmark.running import make_all
from klora.lab.benchmark.scoring import score_all
from klora.lab.pairs import Pair

COARSE: tuple[float, ...] = (0.4, 0.6, 0.8, 1.0, 1.2)
FINE = 0.1
COARSE_SEEDS = 2
"""Seeds of the coarse grid; the finer one has all that were asked for."""

Weights = tuple[float, float]


def name_of(weights: Weights) -> str:
    """The method that adds with these weights."""
    return f"added {weights[0]:g}+{weights[1]:g}"


def around(best: Weights) -> list[Weights]:
    """The best weights and their neighbours at the fine distance."""
    moves = (-FINE, 0.0, FINE)
    return [(round(best[0] + a, 3), round(best[1] + b, 3)) for a, b in product(moves, moves)]


def best_of(results: Results) -> Weights:
    """The weights with the highest harmonic mean; among equals those of the higher probabilities."""
    row = max(
        results.rows,
        key=lambda one: (
            one.figures["harmonic_mean"].value,
            one.figures["harmonic_mean_probability"].value,
        ),
    )
    assert row.method.weights is not None
    return row.method.weights


def _try(
    folder: Path,
    sampling: Sampling,
    pairs: Sequence[Pair],
    grid: Sequence[Weights],
    seeds: Sequence[int],
    workers: int,
) -> Results:
    methods = [method(name_of(one)) for one in grid]
    store = make_all(folder, sampling, pairs, methods, seeds, workers)
    return evaluate(score_all(store, pairs, methods, seeds), pairs)


def find(
    folder: Path, sampling: Sampling, pairs: Sequence[Pair], seeds: Sequence[int], workers: int
) -> dict[str, object]:
    """Search; returns the best weights, and what every pair of weights reached, as plain data.

    Where the finer grid's best lies on its rim, the grid moves there and is searched again.
    """
    grid = list(product(COARSE, COARSE))
    coarse = _try(folder, sampling, pairs, grid, seeds[:COARSE_SEEDS], workers)
    centre = best_of(coarse)
    tried = set(around(centre))
    while True:
        fine = _try(folder, sampling, pairs, sorted(tried), seeds, workers)
        best = best_of(fine)
        new = set(around(best)) - tried
        if best == centre or not new:
            break
        centre, tried = best, tried | new
    return {
        "content": best[0],
        "style": best[1],
        "subjects": sorted({pair.subject for pair in pairs}),
        "styles": sorted({pair.style.name for pair in pairs}),
        "seeds": len(seeds),
        "coarse_seeds": len(seeds[:COARSE_SEEDS]),
        "coarse": _reached(coarse),
        "fine": _reached(fine),
    }


def _reached(results: Results) -> list[dict[str, object]]:
    return [
        {
            "weights": one.method.weights,
            **{
                name: round(one.figures[name].value, 4)
                for name in ("subject", "style", "harmonic_mean", "harmonic_mean_probability")
            },
        }
        for one in results.rows
    ]


def write(found: dict[str, object], path: Path = FIXED_WEIGHTS) -> None:
    """Write the weights where the benchmark looks for them."""
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
