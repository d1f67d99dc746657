"""dW as it is scored: some rows at a time, no more than the processor's cache holds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

# Elements of a block: 2 MB in fp32. Halves and doubles of it take about as long.
_BLOCK = 500_000

# A product of fewer rows than this takes longer for each of them.
_FEWEST_ROWS = 32


class DeltaRows(Protocol):
    """dW of one layer, of which only the rows that are asked for need be in memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(out, in)`` or ``(out, in, h, w)``."""
        ...

    def rows(self, which: slice, into: Tensor) -> Tensor:
        """The rows ``which``, each flat: ``[rows, in * h * w]``, on the CPU.

        May be formed in ``into``, a flat tensor of fp32 with room for them, which the caller then overwrites.
        """
        ...

    def whole(self) -> Tensor:
        """All of it, of shape ``shape``."""
        ...

    def energy_rank(self, share: float) -> int | None:
        """The smallest rank that holds ``share`` of the squared Frobenius norm, where its factors tell it
        without forming it; else ``None``."""
        ...


class WholeDelta:
    """A dW that somebody formed whole. It is read, never written."""

    def __init__(self, delta: Tensor) -> None:
        self._delta = delta.detach()
        self._flat = self._delta.reshape(delta.shape[0], -1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return tuple(self._delta.shape)

    def rows(self, which: slice, into: Tensor) -> Tensor:
        """A view."""
        return self._flat[which]

    def whole(self) -> Tensor:
        """The tensor itself."""
        return self._delta

    def energy_rank(self, share: float) -> int | None:
        """It has no factors."""
        return None


class Scratch:
    """Memory that is used again from block to block and from layer to layer; of one thread alone.

    Fresh memory for each dW costs more than the product that fills it.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}

    def flat(self, purpose: str, elements: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """``[elements]`` of any content; the next call for the same purpose gives the same memory."""
        held = self._held.get((purpose, dtype))
        if held is None or held.numel() < elements:
            held = self._held[purpose, dtype] = torch.empty(elements, dtype=dtype)
        return held[:elements]


def blocks_of(delta: DeltaRows) -> int:
    """How many blocks a dW is scored in. Every thread of torch gets as much of a block as its cache holds."""
    rows, elements = delta.shape[0], math.prod(delta.shape)
    wanted = round(elements / (_BLOCK * torch.get_num_threads()))
    return max(1, min(wanted, rows // _FEWEST_ROWS))


def magnitudes(delta: DeltaRows, blocks: int, scratch: Scratch) -> Iterator[Tensor]:
    """|dW| in ``blocks`` blocks ``[rows, in * h * w]``, fp32 (fp64 for a dW in fp64), contiguous.

    A block is gone when the next is asked for. Each holds every ``blocks``-th row, so that all are alike.
    """
    height = -(-delta.shape[0] // blocks)
    room = scratch.flat("block", height * math.prod(delta.shape[1:]))
    for first in range(blocks):
        block = delta.rows(slice(first, None, blocks), room)
        if block.dtype == torch.float64:
            wide = scratch.flat("block", room.numel(), torch.float64)
            yield torch.abs(block, out=wide[: block.numel()].view(block.shape))
        elif block.dtype == torch.float32:
            yield torch.abs(block, out=room[: block.numel()].view(block.shape))
        else:
            yield room[: block.numel()].view(block.shape).copy_(block).abs_()


def row_blocks(delta: DeltaRows, scratch: Scratch) -> Iterator[Tensor]:
    """dW's rows in order, in blocks ``[rows, in * h * w]``; a block is gone when the next is asked for."""
    rows, width = delta.shape[0], math.prod(delta.shape[1:])
    height = max(1, min(rows, 4 * _BLOCK // width))
    room = scratch.flat("block", height * width)
    for start in range(0, rows, height):
        yield delta.rows(slice(start, min(rows, start + height)), room)
