"""The shortest list that still fails: delta debugging (Zeller and Hildebrandt, 2002), with a bound on
trials.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def shrunk(acts: Sequence[T], fails: Callable[[Sequence[T]], bool], trials: int) -> list[T]:
    """A part of ``acts``, in order, that fails; as short as ``trials`` calls of ``fails`` can make it.

    ``acts`` themselves are taken to fail.
    """
    left, parts = list(acts), 2
    while len(left) > 1:
        size = -(-len(left) // parts)
        for start in range(0, len(left), size):
            fewer = left[:start] + left[start + size :]
            if not trials:
                return left
            trials -= 1
            if fails(fewer):
                left, parts = fewer, max(2, parts - 1)
                break
        else:
            if size == 1:
                return left
            parts = min(len(left), 2 * parts)
    return left


def slope(values: Sequence[float]) -> float:
    """The least-squares slope of ``values`` over their places; 0 for fewer than two."""
    count = len(values)
    if count < 2:
        return 0.0
    middle, mean = (count - 1) / 2, sum(values) / count
    spread = sum((place - middle) ** 2 for place in range(count))
    return sum((place - middle) * (value - mean) for place, value in enumerate(values)) / spread
