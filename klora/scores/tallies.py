"""Measures of a dW that passes by in blocks of |dW| on the CPU, each taken while a block is in the cache."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from klora.scores.delta import Scratch

#: How many elements there are for each of the K largest -> how many of them one maximum stands for. Large
#: groups are quick to look through, as long as few hold more than one of the largest.
_GROUPS = ((256, 32), (32, 8), (0, 1))

#: K from which memory counts: that of dW of a type without rank, times that of another.
_MANY = 2**20

#: The first block is sampled this thinly, but so that this many of the K largest are to be expected.
_SAMPLED, _LEAST = 8, 32


class Tally(Protocol):
    """One measure of one dW in the making."""

    def add(self, magnitudes: Tensor) -> None:
        """Take a block into account: ``[rows, width]``, contiguous, fp32 or fp64. It is not kept."""
        ...

    def needs_another_pass(self) -> bool:
        """Asked after the last block. If so, the tally is ready to see all blocks once more."""
        ...

    def result(self) -> float:
        """The measure of all blocks."""
        ...


class TotalTally:
    """The sum of |dW|, NaN or Inf if dW holds any."""

    def __init__(self, rows: int, scratch: Scratch) -> None:
        self._sum = 0.0
        self._rows, self._scratch = rows, scratch
        self._start()

    def _start(self, *, is_wide: bool = False) -> None:
        self._is_wide = is_wide
        self._seen = 0
        self._sums: Tensor | None = None

    def add(self, magnitudes: Tensor) -> None:
        """Sum a row in the block's own precision, pairwise as torch does; the rows are added up in fp64."""
        dtype = torch.float64 if self._is_wide else magnitudes.dtype
        if self._sums is None:
            self._sums = self._scratch.flat("row sums", self._rows, dtype)
        end = self._seen + magnitudes.shape[0]
        torch.sum(magnitudes, 1, dtype=dtype, out=self._sums[self._seen : end])
        self._seen = end

    def needs_another_pass(self) -> bool:
        """A row's sum may leave the range of fp32 where no element does: then the next pass is in fp64."""
        self._sum = 0.0 if self._sums is None else float(self._sums.numpy().sum(dtype=np.float64))
        if self._is_wide or math.isfinite(self._sum):
            return False
        self._start(is_wide=True)
        return True

    def result(self) -> float:
        """The sum."""
        return self._sum


class EnergyTally:
    """The squared Frobenius norm of dW, in fp64."""

    def __init__(self) -> None:
        self._sum = 0.0

    def add(self, magnitudes: Tensor) -> None:
        """Add the block's squared norm."""
        self._sum += float(torch.linalg.vector_norm(magnitudes, dtype=torch.float64)) ** 2

    def needs_another_pass(self) -> bool:
        """Never."""
        return False

    def result(self) -> float:
        """The squared norm."""
        return self._sum


class LargestTally:
    """The sum of the ``k`` largest of ``elements`` |dW|.

    The first block tells how large the ``k`` largest of all are about, and every block gives what is at least
    that large. If that were fewer than ``k`` in the end, a second pass takes what is larger than nothing.
    """

    def __init__(self, k: int, elements: int, blocks: int, scratch: Scratch) -> None:
        self._k, self._blocks, self._scratch = k, blocks, scratch
        self._group = next(group for least, group in _GROUPS if elements >= least * k)
        self._floor: float | None = None
        self._is_sure = False
        self._candidates: list[NDArray[np.floating]] = []
        self._count = 0

    def add(self, magnitudes: Tensor) -> None:
        """Keep the block's elements that may be among the ``k`` largest."""
        flat = magnitudes.view(-1)
        whole = flat.numel() // self._group * self._group
        groups = (flat if whole == flat.numel() else flat[:whole]).view(self._group, -1)
        maxima = self._maxima(groups)
        if self._floor is None:
            self._floor = self._guess(maxima)
        chosen = np.flatnonzero(maxima.numpy() >= self._floor)
        if chosen.size:
            self._keep(groups.index_select(1, torch.from_numpy(chosen)).numpy(), self._floor)
        if whole < flat.numel():
            self._keep(flat[whole:].numpy(), self._floor)
        if self._count > 2 * self._k:
            self._drop_all_but_the_largest()

    def _maxima(self, groups: Tensor) -> Tensor:
        if self._group == 1:
            return groups[0]
        return torch.amax(groups, 0, out=self._scratch.flat("maxima", groups.shape[1], groups.dtype))

    def _guess(self, maxima: Tensor) -> float:
        # All blocks are alike, so this one holds its part of the k largest, and so does a sample of it.
        # Half as many again to be sure.
        step = max(1, min(_SAMPLED, self._k // (self._blocks * _LEAST)))
        sample = maxima[::step].numpy()
        share = math.ceil(1.5 * self._k / (self._blocks * step)) + _LEAST // 4
        if share >= sample.size:
            return 0.0
        floor = float(np.partition(sample, sample.size - share)[sample.size - share])
        return 0.0 if math.isnan(floor) else floor

    def _keep(self, magnitudes: NDArray[np.floating], floor: float) -> None:
        kept = magnitudes[magnitudes >= floor]
        self._candidates.append(kept)
        self._count += kept.size

    def _drop_all_but_the_largest(self) -> None:
        largest = self._largest()
        self._candidates, self._count = [largest.numpy()], largest.numel()
        self._floor, self._is_sure = float(largest.min()), True

    def _largest(self) -> Tensor:
        if not self._candidates:  # NaN is not larger than anything
            return torch.zeros(0)
        pool = self._candidates[0] if len(self._candidates) == 1 else np.concatenate(self._candidates)
        self._candidates = [pool]
        smaller = max(0, pool.size - self._k)
        if self._k > _MANY:  # in place: topk would also hold an index of eight bytes for each
            pool.partition(smaller)
            return torch.from_numpy(pool[smaller:])
        return torch.topk(torch.from_numpy(pool), pool.size - smaller, sorted=False).values

    def needs_another_pass(self) -> bool:
        """If the first block misled."""
        if self._is_sure or self._count >= self._k:
            return False
        self._floor, self._is_sure = 0.0, True
        self._candidates, self._count = [], 0
        return True

    def result(self) -> float:
        """The sum, in fp64."""
        return float(self._largest().sum(dtype=torch.float64))
