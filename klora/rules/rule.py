"""What a rule is: it says how much of content and style each layer applies at a moment.

To add a rule, write one file here with a subclass of `Rule` and its `RULE`, and add its name to
`klora.rules.registry.MODULES`: one file and one line.
Settings, measures, UI, API, infotext, XYZ axes, command line and lab follow from it.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from klora.options import Values
from klora.rules.part import Part
from klora.schedule import Moment
from klora.scores import Scores

Numbers = NDArray[np.float64]

CONTENT, STYLE = 0, 1
"""Places of the pair in the cast, and columns of what `Rule.shares` returns."""


class Decides(Enum):
    """Which layers a rule decides."""

    CONTESTED = "contested"
    """Attention layers that both LoRAs change, and others that both change as ``other_layers`` says."""
    ALL = "all"
    """Every layer that either LoRA changes."""


@dataclass(frozen=True)
class Contest:
    """All that a rule decides by except time: the scores of the layers that it decides, and the settings."""

    scores: Scores
    values: Values

    @property
    def layers(self) -> int:
        """How many layers are decided."""
        return len(self.scores.layers)

    def number(self, name: str) -> float:
        """A setting's value as a number."""
        return float(self.values[name])

    def text(self, name: str) -> str:
        """A setting's value as text."""
        return str(self.values[name])


class Rule(Part):
    """One rule."""

    decides: ClassVar[Decides] = Decides.CONTESTED

    def measures(self, values: Values) -> tuple[str, ...]:
        """Names of the measures (`klora.scores.MEASURES`) that it decides by; the first is the contest's."""
        return ()

    def gamma(self, contest: Contest) -> float | None:
        """What puts the two LoRAs on one footing; ``None`` for a rule that has no such number."""
        return None

    @abstractmethod
    def shares(self, contest: Contest, moment: Moment) -> Numbers:
        """``[layers, 2]``: the shares of content and style at ``moment``."""


def side_by_side(content: Numbers | float, style: Numbers | float, layers: int) -> Numbers:
    """``[layers, 2]`` from a number or ``[layers]`` for each of the two."""
    return np.column_stack([np.broadcast_to(content, layers), np.broadcast_to(style, layers)]).astype(
        np.float64
    )


def multiplied_by_balance(shares: Numbers, balance: float) -> Numbers:
    """``shares`` with the side that balance turns away from made smaller: to nothing at -1 and +1."""
    factors = np.array([min(1.0, 1.0 - balance), min(1.0, 1.0 + balance)])
    scaled: Numbers = shares * factors
    return scaled
