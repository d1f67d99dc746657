"""A contest by measured effect: what each LoRA does to a layer's output, in place of what it weighs."""

from __future__ import annotations

from dataclasses import replace

from klora.files import LoraFile
from klora.lab.fronts.calibration import Effects
from klora.lab.fronts.dealing import Dealer, Dealt, weighed
from klora.planning import Planner, planner_of_files
from klora.rules import Contest
from klora.schedule import evenly_spaced
from klora.scores import TOP_K_SUM, TOTAL, Scores
from klora.settings import Settings


def by_effect(effects: Effects) -> Dealer:
    """A dealer of K-LoRA's contest whose sides are effects; gamma weighs the totals of each step."""

    def deal(content: LoraFile, style: LoraFile, settings: Settings, steps: int, guidance: float) -> Dealt:
        planner = planner_of_files(content, style, settings)
        moments = evenly_spaced(steps, guidance)
        found = [at_step(planner, effects, step).shares(moment) for step, moment in enumerate(moments)]
        return weighed(planner, found)

    return deal


def at_step(planner: Planner, effects: Effects, step: int) -> Planner:
    """The planner with the effects of a step in place of the scores."""
    names = planner.contest.scores.layers
    places = [effects.layers.index(name) for name in names]
    measured = effects.norms[step, places]
    scores = Scores(names, (1,) * len(names), {TOP_K_SUM: measured, TOTAL: measured})
    return replace(planner, contest=Contest(scores, planner.contest.values))
