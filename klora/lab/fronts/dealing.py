"""Who gets how much: a method's shares for every layer and step, for the rows of both passes.

The engine's rules deal by its own planner. Anything else that can deal, such as a contest by measured
effect (`klora.lab.fronts.effects`), is another `Dealer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from klora.files import LoraFile
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


def with_content_strength(dealt: Dealt, strength: float, guidance: float) -> Dealt:
    """Shares in which the content counts ``strength`` times in the guided prediction, at guidance scale g.

    e_u + g (e_c - e_u) counts what is in the conditional pass g times and takes off g - 1 times what is in
    the other. So the unconditional rows have (g - strength) / (g - 1) of the content's share, none beyond g.
    """
    if strength == 1 or guidance <= 1:
        return dealt
    unconditional = dealt.unconditional.copy()
    unconditional[..., 0] *= max(0.0, (guidance - strength) / (guidance - 1))
    return replace(dealt, unconditional=unconditional)


class Dealer(Protocol):
    """Deals the shares of a sampling."""

    def __call__(
        self, content: LoraFile, style: LoraFile, settings: Settings, steps: int, guidance: float
    ) -> Dealt:
        """The shares for two LoRA files, ``steps`` steps and guidance scale ``guidance``."""
        ...


def by_the_engine(
    content: LoraFile, style: LoraFile, settings: Settings, steps: int, guidance: float
) -> Dealt:
    """As the engine's planner deals, times the weights of the settings."""
    planner = planner_of_files(content, style, settings)
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
