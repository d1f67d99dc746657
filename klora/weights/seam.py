"""The few questions that each host answers; everything else is shared."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from torch import Tensor


class Winner(Enum):
    """Which of the two LoRAs a layer applies."""

    CONTENT = "content"
    STYLE = "style"
    BOTH = "both"
    NONE = "none"

    @property
    def losers(self) -> tuple[int, ...]:
        """Places in the pair (0 content, 1 style) of those that the layer does not apply."""
        return _LOSERS[self]


_LOSERS = {Winner.CONTENT: (1,), Winner.STYLE: (0,), Winner.BOTH: (), Winner.NONE: (0, 1)}


@dataclass(frozen=True)
class LayerView:
    """A layer that both LoRAs change, as the engine sees it.

    ``name`` is the canonical one, ``content_rank`` and ``style_rank`` are r_c and r_s, ``None`` for
    a LoRA type without rank.
    """

    name: str
    attention: bool
    content_rank: int | None
    style_rank: int | None


class Seam(Protocol):
    """What a host does for the engine, for one pair of LoRAs and one loaded model."""

    content_name: str
    style_name: str

    def shared_layers(self) -> Sequence[LayerView]:
        """The layers that both LoRAs change, in the order in which a forward pass calls them."""
        ...

    def deltas(self, layer: str) -> tuple[Tensor, Tensor]:
        """dW of content and style, scaled as the host applies them: ``[out, in]`` or ``[out, in, h, w]``."""
        ...

    def score_key(self) -> Hashable:
        """Equal exactly when `deltas` and ranks are equal: files, multipliers, base model."""
        ...

    def withheld(self, layers: Sequence[str]) -> AbstractContextManager[None]:
        """Keep the host from applying the pair in ``layers`` while inside; give all back on the way out.

        The weights after leaving, whatever happened inside, are those that the host had on entry or
        would have made itself, bit for bit.
        """
        ...

    def apply(self, winners: Mapping[str, Winner]) -> None:
        """From now on apply these winners in these layers; layers not named stay as they are."""
        ...
