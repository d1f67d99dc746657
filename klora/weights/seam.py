"""What each host does for the engine: it applies shares, and puts everything back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from klora.planning import Loras
from klora.schedule import LayerShares


class Seam(Loras, Protocol):
    """A host's way to the weights, for the LoRAs of one cast and one loaded model."""

    def withheld(self, layers: Sequence[str]) -> AbstractContextManager[None]:
        """Keep the host from applying the cast in ``layers`` while inside; give all back on the way out.

        The weights after leaving, whatever happened inside, are those that the host had on entry or
        would have made itself, bit for bit.
        """
        ...

    def apply(self, shares: Mapping[str, LayerShares]) -> None:
        """From now on apply these shares in these layers; layers not named stay as they are."""
        ...
