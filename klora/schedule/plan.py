"""The plan: what wins in each layer at each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klora.scores import Scores


@dataclass(frozen=True)
class Plan:
    """Layers x steps, content or style.

    ``content_wins`` is ``[steps, layers]`` of bool; layers stand in the order of a forward pass.
    """

    scores: Scores
    gamma: float
    content_wins: NDArray[np.bool_]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the contested layers."""
        return self.scores.layers

    @property
    def steps(self) -> int:
        """Number of steps."""
        return int(self.content_wins.shape[0])

    @property
    def content_share(self) -> float:
        """Share of the layer-steps that content wins, 0 to 1; 0 for an empty plan."""
        return float(self.content_wins.mean()) if self.content_wins.size else 0.0

    @property
    def flips(self) -> int:
        """How many times, over all layers, the winner changes between two steps."""
        return int((self.content_wins[1:] != self.content_wins[:-1]).sum())

    def choices(self) -> list[str]:
        """One string per step, one letter per layer: C or S."""
        return ["".join("C" if wins else "S" for wins in step) for step in self.content_wins]

    def as_json(self) -> dict[str, Any]:
        """The plan as plain data; the scores are S_c and S_s before gamma and scale."""
        contests = self.scores.contests
        return {
            "layers": list(self.layers),
            "steps": self.steps,
            "gamma": self.gamma,
            "top_k": [one.top_k for one in contests],
            "content_score": [one.content_score for one in contests],
            "style_score": [one.style_score for one in contests],
            "choices": self.choices(),
        }
