"""What the host's patches do to the denoiser, and which of them the files of the cast put there."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor

from klora.hosts.forge_family.strength import Patch, Strengths, numbers_of

#: Parameter -> patches, in the host's order.
Patches = Mapping[str, Sequence[Patch]]

#: A factor for each LoRA of the cast: 0 is absent, 1 is as the host applies it.
MemberShares = tuple[float, ...]


class CastPatches:
    """All ``patches`` of a denoiser, and as ``owns`` those that each file of the cast put there.

    Nothing here depends on where in a patch something stands.
    """

    def __init__(self, patches: Patches, owns: Sequence[Patches], strengths: Strengths) -> None:
        self._patches = patches
        self._owns = tuple(owns)
        self._strengths = strengths

    @property
    def touched(self) -> tuple[set[str], ...]:
        """The parameters that each of the files changes."""
        return tuple(set(own) & set(self._patches) for own in self._owns)

    def own(self, place: int, name: str) -> list[Patch]:
        """The patches of a parameter that the file at a place in the cast put there."""
        own = self._owns[place].get(name, ())
        return [patch for patch in self._patches.get(name, ()) if _is_in(patch, own)]

    def others(self, name: str) -> list[Patch]:
        """The patches of a parameter that no file of the cast put there."""
        owns = [own.get(name, ()) for own in self._owns]
        return [one for one in self._patches.get(name, ()) if not any(_is_in(one, own) for own in owns)]

    def weighted(self, shares: MemberShares, name: str) -> list[Patch]:
        """The patches of a parameter in the host's order, those of the cast by their shares.

        At share 0 a patch is missing, at 1 it is the very same, else a copy with another strength.
        """
        found = []
        for patch in self._patches.get(name, ()):
            found += self.times([patch], self._share(patch, shares, name), name)
        return found

    def times(self, patches: Sequence[Patch], share: float, name: str) -> list[Patch]:
        """These patches of a parameter at a share."""
        if share == 1:
            return list(patches)
        return [self._strengths.times(patch, share, name) for patch in patches] if share else []

    def _share(self, patch: Patch, shares: MemberShares, name: str) -> float:
        for own, share in zip(self._owns, shares, strict=True):
            if _is_in(patch, own.get(name, ())):
                return share
        return 1.0

    def numbers(self) -> str:
        """A digest of the numbers in all patches, the cast's and others, by parameter."""
        every = (
            f"{name} {[tuple(numbers_of(patch)) for patch in self._patches[name]]}" for name in self._patches
        )
        return _digest(list(every))

    def strengths(self, place: int) -> Hashable:
        """How strong a file is applied, also where another extension changed it layer by layer.

        Plain data, the same in every process.
        """
        found: dict[tuple[float, ...], list[str]] = {}
        for name in self._owns[place]:
            for patch in self.own(place, name):
                found.setdefault(tuple(numbers_of(patch)), []).append(name)
        return tuple((*key, _digest(names)) for key, names in sorted(found.items()))


def _digest(names: Sequence[str]) -> str:
    # Some hosts keep them in sets, whose order is another in each process.
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def _is_in(patch: Patch, own: Sequence[Patch]) -> bool:
    """Whether it is one of them, or a copy around the same weights with, for example, another strength."""
    return any(patch is one for one in own) or any(
        part is weights for part in patch for one in own for weights in one if _holds_tensors(weights)
    )


def _holds_tensors(part: Any) -> bool:
    parts = getattr(part, "weights", part)
    return isinstance(parts, list | tuple) and any(isinstance(one, Tensor | list | tuple) for one in parts)
