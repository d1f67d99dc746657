"""Patches that add something else to another weight, as DoRA's do: the host itself is asked."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

from klora.hosts.forge_family.strength import Patch

#: What a patch alone adds to a parameter: to zeros, and to its clean weight.
Added = Callable[[Patch, str], tuple[Tensor, Tensor]]

#: What two sums in fp32 may differ by, relative to what is added.
_ROUNDING = 1e-2


class Dependence:
    """Asked once for each layout of a patch, since asking takes two merges."""

    def __init__(self, added: Added) -> None:
        self._added = added
        self._known: dict[Hashable, bool] = {}

    def of(self, patch: Patch, name: str) -> bool:
        """Whether what a patch adds to the parameter ``name`` depends on the weight that is there."""
        layout = _layout(patch)
        if layout not in self._known:
            to_zeros, to_weight = self._added(patch, name)
            if not bool(to_zeros.any() or to_weight.any()):
                return False  # nothing here, but another patch of this layout may add something
            apart = float((to_zeros - to_weight).norm())
            self._known[layout] = apart > _ROUNDING * float(to_weight.norm())
        return self._known[layout]


def _layout(part: Any) -> Hashable:
    """What a patch consists of, without its numbers."""
    members = getattr(part, "weights", part)
    if isinstance(members, list | tuple):
        return (type(part).__name__, *map(_layout, members))
    return members if isinstance(members, str) else type(members).__name__
