"""dW of one layer, block of rows by block of rows, scale and DoRA included."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from klora.files import formulas
from klora.files.kinds import Kind, Shape, Tensors, dora_per_output
from klora.files.late_torch import Tensor, torch
from klora.files.row_blocks import block_bounds, form_rows


@dataclass(frozen=True)
class BlockForm:
    """What is needed for any rows of the whole layer's dW.

    ``magnitude`` is a DoRA's, with the parameter's name, which says what it may be.
    """

    kind: Kind
    tensors: Tensors
    scale: float
    shape: Shape
    base: Tensor | None = None
    magnitude: tuple[str, Tensor] | None = None

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop``: ``[stop - start, in, ...]``."""
        direction = self._direction(start, stop)
        if self.magnitude is None or self.base is None:
            return direction
        base = self.base[start:stop]
        if self._per_output:
            magnitude = self.magnitude[1].flatten()[start:stop]
            return formulas.decomposed(base, direction, magnitude, per_output=True)
        return formulas.rescaled(base, direction, self.magnitude[1].flatten(), self._column_norms)

    def _direction(self, start: int, stop: int) -> Tensor:
        base = self.base if self.kind.needs_base else None
        block = form_rows(self.kind, self.tensors, base, slice(start, stop)) * self.scale
        return block.reshape(stop - start, *self.shape[1:])

    @property
    def _per_output(self) -> bool:
        assert self.magnitude is not None, "asked only of a DoRA"
        parameter, values = self.magnitude
        return dora_per_output(tuple(values.shape), self.shape, parameter)

    @cached_property
    def _column_norms(self) -> Tensor:
        """Norms of the columns of W + dV, summed over the blocks, in fp64."""
        assert self.base is not None, "a DoRA's base was asked for before"
        squares = torch.zeros(self.shape[1], dtype=torch.float64, device=self.base.device)
        width = self.base[0].numel()
        for start, stop in block_bounds(self.shape[0], width):
            moved = self.base[start:stop].double() + self._direction(start, stop).double()
            squares += moved.square().flatten(2).sum(2).sum(0) if moved.dim() > 2 else moved.square().sum(0)
        return squares.sqrt()
