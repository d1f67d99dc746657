"""Planners for scores that a test names, without any LoRA behind them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from klora.planning import Cast, LayerView, Planner
from klora.rules import Contest
from klora.schedule import Moment, Plan, evenly_spaced
from klora.scores import ENERGY, TOP_K_SUM, TOTAL, Scores
from klora.settings import Settings


def scores_of(numbers: Sequence[Sequence[float]]) -> Scores:
    """Of each layer: Top-K sums of content and style, then their totals. Energies are the squared totals."""
    table = np.array(numbers, dtype=np.float64).reshape(-1, 4)
    names = tuple(f"layer {index}" for index in range(len(table)))
    measured = {TOP_K_SUM: table[:, :2], TOTAL: table[:, 2:], ENERGY: table[:, 2:] ** 2}
    return Scores(names, (1,) * len(table), measured)


def planner_of(scores: Scores, settings: Settings) -> Planner:
    """A planner that decides every layer of ``scores``."""
    layers = tuple(LayerView(name, True, {0: 1, 1: 1}) for name in scores.layers)
    places = tuple(range(len(layers)))
    cast = Cast.of_pair("fox", "ink")
    return Planner(
        cast, layers, places, np.ones((len(layers), 2)), Contest(scores, settings.values), settings
    )


def plan_of(scores: Scores, settings: Settings, steps: int, guidance_scale: float | None = None) -> Plan:
    """The plan of a sampling whose noise falls evenly."""
    return planner_of(scores, settings).plan(evenly_spaced(steps, guidance_scale))


def shares_at(planner: Planner, step: int, steps: int) -> np.ndarray:
    """``[layers, loras]`` of the conditional rows."""
    return planner.shares(Moment(step, steps)).conditional
