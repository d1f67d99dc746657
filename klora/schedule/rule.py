"""The rule: which layers content wins at a given progress."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from klora.schedule.clock import published_progress, step_progress
from klora.schedule.pattern import bonus
from klora.schedule.plan import Plan
from klora.scores import Scores
from klora.settings import Settings

Choice = NDArray[np.bool_]


@dataclass(frozen=True)
class Rule:
    """Everything that decides, with nothing left open but time.

    Content wins a layer where S_c >= S_s * gamma * S(t), a tie included (paper, section 3.2).
    """

    scores: Scores
    gamma: float
    schedule: str
    alpha: float
    beta: float
    clock: str

    @staticmethod
    def of(scores: Scores, settings: Settings) -> Rule:
        """The rule for these scores under these settings; gamma is taken over all of ``scores``."""
        return Rule(
            scores,
            scores.gamma(settings.gamma),
            settings.schedule,
            settings.alpha,
            settings.beta_value,
            settings.clock,
        )

    def content_wins(self, progress: float | NDArray[np.float64]) -> Choice:
        """``[layers]`` of bool at ``progress``, a number or one number per layer."""
        scale = bonus(self.schedule, self.alpha, self.beta, progress)
        wins: Choice = self.scores.content >= self.scores.style * self.gamma * scale
        return wins

    def at_step(self, step: float, steps: int) -> Choice:
        """``[layers]`` of bool at ``step`` of ``steps`` by the clocks ``step`` and ``published``."""
        if self.clock == "published":
            return self.content_wins(
                published_progress(min(int(step), steps - 1), steps, len(self.scores.contests))
            )
        return self.content_wins(step_progress(step, steps))

    def plan(self, steps: int) -> Plan:
        """The plan of a sampling of ``steps`` steps by the clocks ``step`` and ``published``."""
        return self.recorded([self.at_step(step, steps) for step in range(steps)])

    def recorded(self, choices: list[Choice]) -> Plan:
        """The plan that consists of these choices, one per step, as they were made while sampling."""
        table = np.array(choices, dtype=bool).reshape(len(choices), len(self.scores.contests))
        return Plan(self.scores, self.gamma, table)
