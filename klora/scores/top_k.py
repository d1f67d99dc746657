"""Sums over the elements of one dW. Pure functions from a tensor to a number."""

from __future__ import annotations

import torch
from torch import Tensor

# A flat Top-K over tens of millions of elements is several times slower than a Top-K of pieces and
# then of their union, which holds every element that can be among the K largest.
_PIECE = 1 << 20

#: Share of the squared Frobenius norm that the energy rank has to hold.
ENERGY_SHARE = 0.99


def top_k_sum(delta: Tensor, k: int) -> float:
    """S = sum of the ``k`` largest ``|dW|`` (paper, equation 4), ``k`` clamped to the number of elements.

    ``delta`` has any shape and a floating dtype; the values are summed in float64.
    """
    magnitudes = delta.detach().abs().flatten()
    if k >= magnitudes.numel():
        return float(magnitudes.sum(dtype=torch.float64))
    if magnitudes.numel() > 2 * _PIECE and k < _PIECE // 4:
        pieces = torch.split(magnitudes, _PIECE)
        magnitudes = torch.cat([_largest(piece, k) for piece in pieces])
    return float(_largest(magnitudes, k).sum(dtype=torch.float64))


def _largest(magnitudes: Tensor, k: int) -> Tensor:
    return torch.topk(magnitudes, min(k, magnitudes.numel()), sorted=False).values


def total(delta: Tensor) -> float:
    """Sum of all ``|dW|`` in float64; the numerator or denominator of gamma. NaN or Inf if dW has any."""
    return float(delta.detach().abs().sum(dtype=torch.float64))


def energy_rank(delta: Tensor, share: float = ENERGY_SHARE) -> int:
    """The smallest rank whose best approximation of dW holds ``share`` of its squared Frobenius norm.

    Stands in for r in K = r_c * r_s where a LoRA type has no rank (full ``diff``, GLoRA). Convolutions
    ``[out, in, h, w]`` are taken as ``[out, in * h * w]``. Eigenvalues of the smaller Gram matrix serve,
    in float64, because the singular vectors are not needed.
    """
    matrix = delta.detach().reshape(delta.shape[0], -1).to(torch.float64)
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    energies = torch.linalg.eigvalsh(matrix @ matrix.T).clamp_min(0).flip(0)
    held = energies.cumsum(0)
    if held[-1] <= 0:
        return 1
    return int((held < share * held[-1]).sum()) + 1
