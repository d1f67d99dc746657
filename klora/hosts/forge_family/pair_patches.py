"""What the host's patches do to the denoiser, and which of them the pair's two files put there."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor

from klora.hosts.forge_family.regions import Losers

Patch = Sequence[Any]
#: Parameter -> patches, in the host's order.
Patches = Mapping[str, Sequence[Patch]]


class PairPatches:
    """All ``patches`` of a denoiser, and as ``owns`` those that the content and the style file put there.

    Nothing here depends on where in a patch something stands.
    """

    def __init__(self, patches: Patches, owns: tuple[Patches, Patches]) -> None:
        self._patches = patches
        self._owns = owns

    @property
    def touched(self) -> tuple[set[str], set[str]]:
        """The parameters that each of the two files changes."""
        content, style = (set(own) & set(self._patches) for own in self._owns)
        return content, style

    def own(self, which: int, name: str) -> list[Patch]:
        """The patches of a parameter that a file (0 content, 1 style) put there."""
        own = self._owns[which].get(name, ())
        return [patch for patch in self._patches.get(name, ()) if _is_in(patch, own)]

    def without(self, losers: Losers, name: str) -> list[Patch]:
        """The patches of a parameter in the host's order, less those of the losing files."""
        owns = [self._owns[which].get(name, ()) for which in losers]
        found = self._patches.get(name, ())
        return [patch for patch in found if not any(_is_in(patch, own) for own in owns)]

    def strengths(self, which: int) -> Hashable:
        """How strong a file is applied, also where another extension changed it layer by layer."""
        found: dict[tuple[float, ...], list[str]] = {}
        for name in self._owns[which]:
            for patch in self.own(which, name):
                key = tuple(one for one in patch if isinstance(one, float | int))
                found.setdefault(key, []).append(name)
        return tuple((key, len(names), hash(tuple(names))) for key, names in found.items())


def _is_in(patch: Patch, own: Sequence[Patch]) -> bool:
    """Whether it is one of them, or a copy around the same weights with, for example, another strength."""
    return any(patch is one for one in own) or any(
        part is weights for part in patch for one in own for weights in one if _holds_tensors(weights)
    )


def _holds_tensors(part: Any) -> bool:
    parts = getattr(part, "weights", part)
    return isinstance(parts, list | tuple) and any(isinstance(one, Tensor | list | tuple) for one in parts)
