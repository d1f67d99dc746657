"""How well two LoRAs may do together: a preliminary index from 0 to 100, and a verdict with its remedy.

The index is a formula from the two files alone. It is a plausible one, no measured one: the study in the lab
that would confirm or replace it is not done, and whoever shows the number says so.

    index = 100 * strength * directions * layers
    strength   = 1 / (1 + |log10 q|), q = |dW_content| / |dW_style| over the layers that both change
    directions = 1 - excess, how far their rows and columns overlap beyond chance (1 if no more than chance)
    layers     = the share of the attention layers of the smaller LoRA that the other changes too
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from klora.report.directions import Overlap

PRELIMINARY = "preliminary: a formula from the two files, not yet confirmed by the lab"

#: A LoRA is called much stronger from this ratio of norms on.
_MUCH_STRONGER = 2.0

#: An overlap beyond chance is called large from here on.
_LARGE_EXCESS = 0.2

#: A LoRA is called short-changed below this share of the layer-steps.
_SMALL_SHARE = 0.2


@dataclass(frozen=True)
class Compatibility:
    """The index and what it is made of, each part from 0 to 1."""

    index: float
    strength: float
    directions: float
    layers: float

    @staticmethod
    def of(overlap: Overlap, shared_attention: int, smaller_attention: int) -> Compatibility:
        """From the overlap over all shared layers, and the numbers of attention layers that both have and
        that the smaller of the two has.
        """
        content, style = (energy**0.5 for energy in overlap.energy)
        are_there = content > 0 and style > 0
        strength = 1 / (1 + abs(math.log10(content / style))) if are_there else 0.0
        directions = 1 - overlap.excess
        layers = shared_attention / smaller_attention if smaller_attention else 0.0
        return Compatibility(100 * strength * directions * layers, strength, directions, layers)

    def as_json(self) -> dict[str, Any]:
        """The numbers, and that they are preliminary."""
        return {**{name: round(value, 4) for name, value in asdict(self).items()}, "status": PRELIMINARY}


@dataclass(frozen=True)
class Verdict:
    """What to think of the pair, and what to do; each a sentence."""

    sentence: str
    remedy: str


def verdict(
    names: tuple[str, str],
    strengths: tuple[float, float],
    compatibility: Compatibility,
    content_share: float,
) -> Verdict:
    """The first thing that is remarkable about a pair.

    ``strengths`` are the norms of both, ``content_share`` is content's part of the layer-steps.
    """
    if strengths[0] == 0 or strengths[1] == 0:
        idle = names[0] if strengths[0] == 0 else names[1]
        return Verdict(f"{idle} changes nothing where both have layers.", "Use another version of this LoRA.")
    return (
        _of_strength(names, strengths)
        or _of_directions(names, compatibility)
        or _of_shares(names, content_share)
        or Verdict(
            f"{names[0]} and {names[1]} are about equally strong and keep out of each other's way.",
            "Nothing needs to be changed before the first picture.",
        )
    )


def _of_strength(names: tuple[str, str], strengths: tuple[float, float]) -> Verdict | None:
    strong, weak = (0, 1) if strengths[0] >= strengths[1] else (1, 0)
    ratio = strengths[strong] / strengths[weak]
    if ratio < _MUCH_STRONGER:
        return None
    return Verdict(
        f"{names[strong]} is {ratio:.1f} times as strong as {names[weak]}.",
        f"Leave gamma on, which balances the contest; if {names[strong]} still drowns {names[weak]}, lower "
        f"its weight or turn balance towards {'content' if weak == 0 else 'style'}.",
    )


def _of_directions(names: tuple[str, str], compatibility: Compatibility) -> Verdict | None:
    excess = 1 - compatibility.directions
    if excess < _LARGE_EXCESS:
        return None
    return Verdict(
        f"{names[0]} and {names[1]} write into the same directions, {excess:.0%} of the way beyond chance.",
        "Do not add them as they are; set transform to NP-LoRA, which takes the style's directions out of "
        "the content.",
    )


def _of_shares(names: tuple[str, str], content_share: float) -> Verdict | None:
    shares = content_share, 1 - content_share
    small = 0 if shares[0] < shares[1] else 1
    if shares[small] >= _SMALL_SHARE:
        return None
    towards = "content (below 0)" if small == 0 else "style (above 0)"
    return Verdict(
        f"{names[small]} gets only {shares[small]:.0%} of the layer-steps by the chosen rule.",
        f"Turn balance towards {towards}.",
    )
