"""Who gets how much: a method's shares for every layer and step, for the rows of both passes.

The engine's rules deal by its own planner. Anything else that can deal, such as a contest by measured
effect (`klora.lab.fronts.effects`), is another `Dealer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from klora.files import read_lora
from klora.planning import Planner, planner_of_files
from klora.schedule import Shares, evenly_spaced
from klora.settings import Settings

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Dealt:
    """Shares of content and style, [steps, layers, 2] in the order of ``layers``, for each pass."""

    layers: tuple[str, ...]
    conditional: Numbers
    unconditional: Numbers

    def ordered(self, names: Sequence[str]) -> Dealt:
        """The same in another order of layers."""
        places = [self.layers.index(name) for name in names]
        return Dealt(tuple(names), self.conditional[:, places], self.unconditional[:, places])


class Dealer(Protocol):
    """Deals the shares of a sampling."""

    def __call__(self, content: Path, style: Path, settings: Settings, steps: int, guidance: float) -> Dealt:
        """The shares for two LoRA files, ``steps`` steps and guidance scale ``guidance``."""
        ...


def by_the_engine(content: Path, style: Path, settings: Settings, steps: int, guidance: float) -> Dealt:
    """As the engine's planner deals, times the weights of the settings."""
    planner = planner_of_files(read_lora(content), read_lora(style), settings)
    return weighed(planner, [planner.shares(moment) for moment in evenly_spaced(steps, guidance)])


def weighed(planner: Planner, found: Sequence[Shares]) -> Dealt:
    """The shares times the weights of the planner's settings."""
    settings = planner.settings
    weights = np.array([settings.content_weight, settings.style_weight])
    conditional = np.stack([one.conditional for one in found]) * weights
    unconditional = [one.conditional if one.unconditional is None else one.unconditional for one in found]
    return Dealt(
        tuple(layer.name for layer in planner.layers), conditional, np.stack(unconditional) * weights
    )
