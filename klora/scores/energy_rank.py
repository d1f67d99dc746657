"""The energy rank of a dW that has no rank of its own, at the cost of few singular values.

Two ways: the eigenvalues of the smaller Gram matrix, exact, up to a width of `MOST_EXACT`; above, block
Lanczos on it (Golub and Underwood 1977), whose Ritz values are exact for a dW of low rank, and otherwise a
quadrature of its spectrum (Ubaru, Chen and Saad 2017) with the energy that is known exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

#: Share of the squared Frobenius norm that the energy rank has to hold.
ENERGY_SHARE = 0.99

#: Smaller side up to which all eigenvalues are taken: a tenth of a second.
MOST_EXACT = 640

#: Of block Lanczos: columns of a block, and blocks. Work is 2 * _COLUMNS * _BLOCKS passes over dW, as
#: products.
_COLUMNS, _BLOCKS = 16, 12

#: A Ritz value is taken for one eigenvalue if its residual is at most this share of it.
_CONVERGED = 0.001

#: Ritz values that leave less than this of the energy are all there are.
_ALL = 1e-4

#: Ritz values below this share of the largest are what rounding leaves.
_NOISE = 1e-6

#: Gives dW's rows in order, in blocks ``[rows, width]`` of which one is in memory at a time.
RowBlocks = Callable[[], Iterable[Tensor]]

_PIECE = 2**21


def energy_rank(delta: Tensor, share: float = ENERGY_SHARE) -> int:
    """The smallest rank whose best approximation of dW holds ``share`` of its squared Frobenius norm.

    Stands in for r in K = r_c * r_s where a LoRA type has no rank (full ``diff``, GLoRA). Convolutions
    ``[out, in, h, w]`` are taken as ``[out, in * h * w]``. A dW that is not finite has rank 1 here; it is
    refused by its total. Above `MOST_EXACT` see `energy_rank_of_rows`.
    """
    matrix = delta.detach().reshape(delta.shape[0], -1)
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    height = max(1, _PIECE // matrix.shape[1])
    return energy_rank_of_rows(lambda: torch.split(matrix, height), matrix.shape[1], share)


def energy_rank_of_rows(rows: RowBlocks, width: int, share: float = ENERGY_SHARE) -> int:
    """The same of a dW of which some rows at a time are formed; each block is used up before the next.

    Exact up to a ``width`` of `MOST_EXACT`, and above it for a dW of a rank up to about 150. For others it is
    an estimate, always the same for the same dW, within 5 % on the spectra of the tests. It takes a second
    for a layer of 12288 x 3072 on one core. Rows that outnumber the width serve best.
    """
    gram_times = _gram_product(rows, width)
    if width <= MOST_EXACT:
        gram = gram_times(None)
        if not bool(gram.isfinite().all()):
            return 1
        return _smallest(torch.linalg.eigvalsh(gram).clamp_min(0), None, share)
    energy = sum(float(torch.linalg.vector_norm(block, dtype=_wide(block))) ** 2 for block in rows())
    if not 0 < energy < float("inf"):
        return 1
    return _smallest(*_spectrum(gram_times, width, energy), share)


def _gram_product(rows: RowBlocks, width: int) -> Callable[[Tensor | None], Tensor]:
    """dW.T @ dW @ x, summed over blocks of rows; without x the Gram matrix itself, in fp64."""

    def product(x: Tensor | None) -> Tensor:
        total: Tensor | None = None
        for block in rows():
            piece = block.to(_wide(block)) if x is None else block.to(torch.float32)
            added = piece.T @ (piece if x is None else piece @ x.to(piece.device))
            total = added if total is None else total.add_(added)
        return torch.zeros(width, width, dtype=torch.float64) if total is None else total

    return product


def _wide(block: Tensor) -> torch.dtype:
    return torch.float32 if block.device.type == "mps" else torch.float64


def _spectrum(
    gram_times: Callable[[Tensor | None], Tensor], width: int, energy: float
) -> tuple[Tensor, Tensor]:
    """Eigenvalues of dW.T @ dW and how often each is there, so that they add up to ``energy``."""
    ritz, weights, residuals = _ritz_values(gram_times, width)
    ritz = ritz.clamp_min(0)
    known = residuals <= _CONVERGED * ritz
    left = energy - float(ritz[known].sum())
    if left <= _ALL * energy:
        return ritz, known.double()
    alive = ritz > _NOISE * ritz.max()
    if not bool((~known & alive).any()):  # equal eigenvalues, of which random columns show one each
        known, left = torch.zeros_like(known), energy
    weights = weights * alive
    guessed = float((weights * ritz)[~known].sum())
    return ritz, torch.where(known, torch.ones_like(weights), weights * (left / guessed))


def _ritz_values(gram_times: Callable[[Tensor | None], Tensor], width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ritz values of block Lanczos from random columns, the number of eigenvalues that each stands for, and
    its residual."""
    start = torch.randn(width, _COLUMNS, generator=torch.Generator().manual_seed(0))
    basis = block = torch.linalg.qr(start).Q
    images = torch.empty(width, 0)
    while True:
        image = gram_times(block).cpu().to(torch.float32)
        images = torch.cat((images, image), 1)
        if images.shape[1] == _COLUMNS * _BLOCKS:
            break
        left = image - basis @ (basis.T @ image)
        if float(left.norm()) <= 1e-5 * float(images.norm()):
            break  # dW has no more directions than these
        block = left
        for _ in range(2):  # columns of which little is left are mostly rounding, and cleaned once more
            block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
        basis = torch.cat((basis, block), 1)
    small = (basis.T @ images).double()
    ritz, vectors = torch.linalg.eigh((small + small.T) / 2)
    weights = vectors[:_COLUMNS].square().sum(0) * (width / _COLUMNS)
    apart = images @ vectors.float() - (basis @ vectors.float()) * ritz.float()
    return ritz, weights, torch.linalg.vector_norm(apart, dim=0).double()


def _smallest(energies: Tensor, counts: Tensor | None, share: float) -> int:
    """How many of the largest ``energies``, each there ``counts`` times, hold ``share`` of all."""
    energies, order = energies.sort(descending=True)
    counts = torch.ones_like(energies) if counts is None else counts[order]
    held = (energies * counts).cumsum(0)
    if held[-1] <= 0:
        return 1
    place = int((held < share * held[-1]).sum())
    before = float(counts[:place].sum())
    missing = share * float(held[-1]) - (float(held[place - 1]) if place else 0.0)
    part = missing / float(energies[place]) if float(counts[place]) > 1 else 1.0
    return max(1, math.ceil(before + min(part, float(counts[place])) - _ALL))
