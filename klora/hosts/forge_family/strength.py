"""Patches with another strength. Where the strength stands in a patch, the host itself is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Patch = Sequence[Any]

#: What a patch alone makes of a parameter of zeros, by the host's own merge.
Added = Callable[[Patch, str], Tensor]


class Strengths:
    """Multiplies the strengths of a host's patches.

    A patch is a row of things in an order of the host's own: its strength among them, tensors, and other
    numbers, such as the factor of the weight that it is merged into. The strength is the number that,
    doubled, doubles what the patch adds to zeros.
    """

    def __init__(self, added: Added) -> None:
        self._added = added
        #: Which members of a patch are numbers -> which of these is the strength.
        self._places: dict[tuple[bool, ...], int] = {}

    def times(self, patch: Patch, share: float, name: str) -> Patch:
        """A copy of a patch of the parameter ``name`` that is applied ``share`` times as strongly."""
        return _with_number(patch, self._place(patch, name), share)

    def _place(self, patch: Patch, name: str) -> int:
        layout = tuple(map(_is_number, patch))
        known = self._places.get(layout)
        if known is not None:
            return known
        numbers = [place for place, is_number in enumerate(layout) if is_number]
        place = self._asked(patch, name, numbers) if len(numbers) > 1 else None
        if place is None and len(numbers) > 1:
            return numbers[0]  # the patch adds nothing, however strong it is
        self._places[layout] = numbers[0] if place is None else place
        return self._places[layout]

    def _asked(self, patch: Patch, name: str, numbers: Sequence[int]) -> int | None:
        once = self._added(patch, name)
        if not bool(once.any()):
            return None
        for place in numbers:
            twice = self._added(_with_number(patch, place, 2.0), name)
            if torch.allclose(twice, 2 * once, rtol=1e-3, atol=0):
                return place
        return None


def numbers_of(patch: Patch) -> Iterator[float]:
    """The numbers of a patch, its strength among them."""
    yield from (member for member in patch if _is_number(member))


def _with_number(patch: Patch, place: int, factor: float) -> Patch:
    members = [member * factor if at == place else member for at, member in enumerate(patch)]
    return members if isinstance(patch, list) else tuple(members)


def _is_number(member: Any) -> bool:
    return isinstance(member, float | int) and not isinstance(member, bool)
