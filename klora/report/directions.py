"""Whether two LoRAs write into the same directions of a layer, by algebra of their factors.

dW = up @ down reads from the row space of ``down`` and writes into the column space of ``up``. How much of
one dW lies in the row space or the column space of the other is compared with what chance gives: a random
subspace of dimension k in n dimensions holds k / n of the energy of anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from klora.files import LoraLayer

#: Directions whose share of the strongest one's energy is below this are rounding.
_SMALLEST = 1e-10

#: So many directions stand for a layer whose type has no factors.
LEADING = 32
_POWER_ITERATIONS = 2


@dataclass(frozen=True)
class Factors:
    """One LoRA in one layer, in fp64: dW = up @ down, up ``[out, r]``, down ``[r, in]``, kernels flattened.

    ``up_gram`` is up^T up, ``down_gram`` is down down^T, each ``[r, r]``.
    """

    up: Tensor
    down: Tensor
    up_gram: Tensor
    down_gram: Tensor

    @staticmethod
    def of(layer: LoraLayer) -> Factors:
        """The factors of a layer; of a type without any, its leading directions. Raises `LoraFileError`."""
        found = layer.factors()
        up, down = leading(layer.delta()) if found is None else found
        made = Factors.from_pair(up, down)
        if not math.isfinite(made.energy):
            raise layer.error(
                "it holds NaN or infinite values", "use another version of this file or train it again"
            )
        return made

    @staticmethod
    def from_pair(up: Tensor, down: Tensor) -> Factors:
        """From ``up`` and ``down`` in any floating dtype, with or without kernels."""
        up, down = up.flatten(1).double(), down.flatten(1).double()
        return Factors(up, down, up.T @ up, down @ down.T)

    @property
    def energy(self) -> float:
        """Squared Frobenius norm of dW."""
        return float((self.up_gram * self.down_gram).sum())


def leading(delta: Tensor, rank: int = LEADING) -> tuple[Tensor, Tensor]:
    """(up, down) of about the best approximation of ``rank``, by subspace iteration (Halko et al., 2011)."""
    matrix = delta.detach().flatten(1).double()
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(matrix.shape[1], min(rank, *matrix.shape), generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(matrix @ start).Q
    for _ in range(_POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix @ (matrix.T @ basis)).Q
    return basis, basis.T @ matrix


@dataclass(frozen=True)
class Overlap:
    """Energies of two LoRAs in one layer or in many, and how much of them lies in the other's spaces.

    Of each pair of numbers the first is content's (in the style's space), the second style's (in content's).
    ``rows``, ``columns`` and what chance gives are energies; divided by ``energy`` they are shares.
    ``product`` is the sum of the products of all elements of the two dW.
    """

    energy: tuple[float, float]
    rows: tuple[float, float]
    rows_by_chance: tuple[float, float]
    columns: tuple[float, float]
    columns_by_chance: tuple[float, float]
    product: float

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(
            _added(self.energy, other.energy),
            _added(self.rows, other.rows),
            _added(self.rows_by_chance, other.rows_by_chance),
            _added(self.columns, other.columns),
            _added(self.columns_by_chance, other.columns_by_chance),
            self.product + other.product,
        )

    @staticmethod
    def none() -> Overlap:
        """Of no layer."""
        zero = (0.0, 0.0)
        return Overlap(zero, zero, zero, zero, zero, 0.0)

    def share(self, energies: tuple[float, float]) -> tuple[float, float]:
        """Energies such as ``rows`` as shares of the whole, 0 to 1; 0 for a LoRA that is zero."""
        parts = (
            part / whole if whole > 0 else 0.0 for part, whole in zip(energies, self.energy, strict=True)
        )
        content, style = parts
        return content, style

    @property
    def alignment(self) -> float:
        """Cosine of the angle between the two dW, -1 to 1; 0 where they have nothing in common."""
        length = (self.energy[0] * self.energy[1]) ** 0.5
        return self.product / length if length > 0 else 0.0

    @property
    def excess(self) -> float:
        """How far rows and columns overlap beyond chance on average: 0 is chance, 1 the same directions."""
        measured = (*self.share(self.rows), *self.share(self.columns))
        chances = (*self.share(self.rows_by_chance), *self.share(self.columns_by_chance))
        above = [(m - c) / (1 - c) if c < 1 else 0.0 for m, c in zip(measured, chances, strict=True)]
        return min(1.0, max(0.0, sum(above) / len(above)))


def _added(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    return first[0] + second[0], first[1] + second[1]


def overlap(content: Factors, style: Factors) -> Overlap:
    """The overlap in one layer."""
    energy = content.energy, style.energy
    rows, row_chances = zip(*(_in_rows(*pair) for pair in ((content, style), (style, content))), strict=True)
    columns, column_chances = zip(
        *(_in_columns(*pair) for pair in ((content, style), (style, content))), strict=True
    )
    return Overlap(
        energy=energy,
        rows=rows,
        rows_by_chance=(row_chances[0] * energy[0], row_chances[1] * energy[1]),
        columns=columns,
        columns_by_chance=(column_chances[0] * energy[0], column_chances[1] * energy[1]),
        product=float(((content.up.T @ style.up) * (content.down @ style.down.T)).sum()),
    )


def _in_rows(one: Factors, other: Factors) -> tuple[float, float]:
    """(energy of ``one`` in the row space of ``other``, chance's share)."""
    turn = _orthonormal(other.down_gram)
    inner = (one.down @ other.down.T) @ turn
    return float((inner * (one.up_gram @ inner)).sum()), turn.shape[1] / one.down.shape[1]


def _in_columns(one: Factors, other: Factors) -> tuple[float, float]:
    """(energy of ``one`` in the column space of ``other``, chance's share)."""
    turn = _orthonormal(other.up_gram)
    inner = (one.up.T @ other.up) @ turn
    return float((inner * (one.down_gram @ inner)).sum()), turn.shape[1] / one.up.shape[0]


def _orthonormal(gram: Tensor) -> Tensor:
    """T ``[r, k]`` such that the k vectors T^T V are orthonormal and span the rows of V; gram is V V^T."""
    energies, vectors = torch.linalg.eigh(gram)
    present = energies > _SMALLEST * energies[-1].clamp_min(0)
    present &= energies > 0
    basis: Tensor = vectors[:, present] / energies[present].sqrt()
    return basis
