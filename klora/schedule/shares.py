"""Shares: how much of each LoRA each layer applies at one moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class LayerShares:
    """The shares of one layer: a factor for each LoRA of the cast, in its order.

    0 is absent, 1 is as the host would apply it, both exactly and without a multiplication; any other
    number is that many times. ``unconditional`` are those of the rows of the unconditional pass, where they
    differ from ``conditional``.
    """

    conditional: tuple[float, ...]
    unconditional: tuple[float, ...] | None = None

    @property
    def difference(self) -> tuple[float, ...]:
        """What the unconditional rows get more than the conditional ones, for each LoRA."""
        if self.unconditional is None:
            return (0.0,) * len(self.conditional)
        return tuple(u - c for u, c in zip(self.unconditional, self.conditional, strict=True))


@dataclass(frozen=True)
class Expected:
    """The shares of layers with which a pass is likely to begin, by name, and whether the conditional ones
    last until its end, which takes the plan of all its moments: not every host asks.
    """

    shares: Mapping[str, LayerShares]
    lasts: Callable[[], bool]


@dataclass(frozen=True, eq=False)
class Shares:
    """The shares of all layers at one moment, ``[layers, loras]``.

    ``unconditional`` is ``None`` where the rows of both passes of the guidance get the same.
    """

    conditional: Numbers
    unconditional: Numbers | None = None

    def of_layer(self, place: int) -> LayerShares:
        """The shares of the layer at ``place``."""
        conditional = tuple(self.conditional[place].tolist())
        if self.unconditional is None:
            return LayerShares(conditional)
        unconditional = tuple(self.unconditional[place].tolist())
        return LayerShares(conditional, None if unconditional == conditional else unconditional)

    def changed_since(self, earlier: Shares | None) -> list[int]:
        """The places of the layers whose shares are others than in ``earlier``; all if there was none."""
        if earlier is None:
            return list(range(len(self.conditional)))
        differs = (self.conditional != earlier.conditional).any(axis=1)
        differs |= (_both(self) != _both(earlier)).any(axis=1)
        return [int(place) for place in np.flatnonzero(differs)]


def _both(shares: Shares) -> Numbers:
    return shares.conditional if shares.unconditional is None else shares.unconditional
