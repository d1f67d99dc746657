"""The cast of a pass: which LoRAs take part, in which roles, and what they are to the engine."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from klora.schedule import ALWAYS, Window


@dataclass(frozen=True)
class Member:
    """One LoRA of the cast and the window in which it takes part."""

    name: str
    window: Window = ALWAYS


@dataclass(frozen=True)
class Cast:
    """The LoRAs of a pass in order. With a pair, content is the first and style the second; all others are
    guests: LoRAs of the prompt that have a window. Other LoRAs are the host's business."""

    members: tuple[Member, ...]
    has_pair: bool = True

    @staticmethod
    def of_pair(content: str, style: str) -> Cast:
        """A cast of content and style alone."""
        return Cast((Member(content), Member(style)))

    @property
    def names(self) -> tuple[str, ...]:
        """The LoRAs' names."""
        return tuple(member.name for member in self.members)


@dataclass(frozen=True)
class LayerView:
    """A layer that a LoRA of the cast changes, as the engine sees it.

    ``name`` is the canonical one. ``ranks`` leads from the places in the cast of the LoRAs that change the
    layer to their ranks, ``None`` for a type without rank. ``is_contestable``: the two deltas of a pair can
    be weighed against each other there, as in a linear or a convolution.
    """

    name: str
    is_attention: bool
    ranks: dict[int, int | None]
    is_contestable: bool = True

    @property
    def is_shared(self) -> bool:
        """Whether content and style both change the layer and can be weighed."""
        return self.is_contestable and 0 in self.ranks and 1 in self.ranks


class Loras(Protocol):
    """The LoRAs of a cast: what they change and by how much, whoever applies them."""

    names: tuple[str, ...]

    def layers(self) -> Sequence[LayerView]:
        """The denoiser's layers that any of them changes, in the order in which a forward pass calls them."""
        ...

    def deltas(self, layer: str) -> tuple[Tensor, Tensor]:
        """dW of content and style, scaled as they are applied: ``[out, in]`` or ``[out, in, h, w]``."""
        ...

    def score_key(self) -> Hashable:
        """Equal exactly when the deltas and ranks of content and style are equal: files, weights, model."""
        ...
