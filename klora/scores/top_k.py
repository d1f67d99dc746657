"""What the magnitudes of one dW amount to. Pure functions from a tensor to a number."""

from __future__ import annotations

import torch
from torch import Tensor

# A Top-K costs many times a maximum, so most elements are ruled out by the maxima of groups of this size.
_GROUP = 16

# torch writes a float64 copy of what it sums in float64; copies of this size stay in the cache.
_PIECE = 1 << 18


def top_k_sum(magnitudes: Tensor, k: int) -> float:
    """S = sum of the ``k`` largest ``|dW|`` (paper, equation 4), ``k`` clamped to the number of elements.

    ``magnitudes`` is ``|dW|``, of any shape and a floating dtype, without NaN; the sum is in float64.
    """
    magnitudes = magnitudes.flatten()
    if k >= magnitudes.numel():
        return total(magnitudes)
    largest = torch.topk(_contenders(magnitudes, k), k, sorted=False).values
    return float(largest.sum(dtype=torch.float64))


def _contenders(magnitudes: Tensor, k: int) -> Tensor:
    """Elements that hold the ``k`` largest, usually little more than ``k`` of them.

    The k-th largest of the maxima of disjoint groups is a lower bound of the k-th largest element.
    """
    groups = magnitudes.numel() // _GROUP
    if groups < 4 * k:
        return magnitudes
    maxima = magnitudes[: groups * _GROUP].view(_GROUP, groups).amax(0)
    bound = torch.topk(maxima, k, sorted=False).values.min()
    return magnitudes[magnitudes >= bound]


def total(magnitudes: Tensor) -> float:
    """Sum of all ``|dW|`` in float64; the numerator or denominator of gamma. NaN or Inf if dW has any."""
    pieces = torch.split(magnitudes.flatten(), _PIECE)
    return float(torch.stack([piece.sum(dtype=torch.float64) for piece in pieces]).sum())
