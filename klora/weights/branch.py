"""A branch beside a layer: it gives the rows of the unconditional pass more or less of a LoRA than the
others.

WebUIs and pipelines run both passes of classifier-free guidance as rows of one batch, and a weight is the
same for all rows. So the weight is merged for the conditional rows, and what the unconditional rows shall
have beyond it is added to the layer's output there: through the factors of the LoRA, which costs little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from klora.errors import HostError

Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class RowDelta:
    """A LoRA's dW of one layer, to be multiplied with rows of its input.

    ``factors`` are (up, down) with dW = up @ down where the LoRA is of low rank: up ``[out, r]``, down
    ``[r, in]`` or ``[r, in, h, w]``; else ``dense`` is dW itself. ``bias`` ``[out]`` is added as it is.
    ``rows`` are the outputs that this is about where it is a part of a fused projection.
    """

    factors: tuple[Tensor, Tensor] | None = None
    dense: Tensor | None = None
    bias: Tensor | None = None
    rows: tuple[tuple[int, int], ...] | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> RowDelta:
        """The same delta there, in that dtype."""
        factors = None if self.factors is None else tuple(one.to(device, dtype) for one in self.factors)
        dense, bias = (None if one is None else one.to(device, dtype) for one in (self.dense, self.bias))
        return RowDelta(factors, dense, bias, self.rows)  # type: ignore[arg-type]

    def is_like(self, other: Tensor) -> bool:
        """Whether it lies on the device of ``other``, in its dtype."""
        held = self.dense if self.factors is None else self.factors[0]
        assert held is not None, "it has factors or is dense"
        return held.device == other.device and held.dtype == other.dtype

    def bytes(self) -> int:
        """The memory of its tensors."""
        held = (*(self.factors or ()), self.dense, self.bias)
        return sum(one.numel() * one.element_size() for one in held if one is not None)

    def matrix(self) -> Tensor:
        """dW as a matrix ``[out, everything else]``."""
        if self.factors is None:
            assert self.dense is not None, "it has factors or is dense"
            return self.dense.flatten(1)
        up, down = self.factors
        return up.flatten(1) @ down.flatten(1)


#: A LoRA's dW and what it is to be multiplied by.
Term = tuple[float, RowDelta]


class BatchRows:
    """Which rows of a batch belong to the unconditional pass; told before each forward of the denoiser."""

    def __init__(self) -> None:
        self._batch = 0
        self._unconditional: tuple[tuple[int, int], ...] = ()

    def tell(self, batch: int, unconditional: Sequence[tuple[int, int]]) -> None:
        """``unconditional`` are ranges (start, stop) of the ``batch`` rows that the next forward has."""
        self._batch = batch
        self._unconditional = tuple((start, stop) for start, stop in unconditional if stop > start)

    def of(self, tensor: Tensor) -> tuple[tuple[int, int], ...]:
        """The ranges in a layer's input. Some layers see each row cut into several that lie side by side."""
        if not self._unconditional:
            return ()
        if not self._batch or tensor.shape[0] % self._batch:
            raise HostError(
                "K-LoRA cannot tell which rows of this model's layers belong to the negative side of the "
                f"guidance ({tensor.shape[0]} rows for a batch of {self._batch}); set Negative side to both."
            )
        pieces = tensor.shape[0] // self._batch
        return tuple((start * pieces, stop * pieces) for start, stop in self._unconditional)


class Branches:
    """The branches of a denoiser's layers; nothing is hooked where nothing is to be added."""

    def __init__(self) -> None:
        self.rows = BatchRows()
        self._hooks: dict[Layer, RemovableHandle] = {}
        self._terms: dict[Layer, dict[str, Sequence[Term]]] = {}
        self._sums: dict[Layer, list[RowDelta]] = {}

    def put(self, layer: Layer, name: str, terms: Sequence[Term]) -> None:
        """From now on add factor * dW of each term to the unconditional rows of a layer's output.

        ``name`` tells several terms of one layer apart, such as those of the parts of a fused projection.
        """
        wanted = [(factor, delta) for factor, delta in terms if factor]
        named = self._terms.setdefault(layer, {})
        self._sums.pop(layer, None)
        if wanted:
            named[name] = wanted
        else:
            named.pop(name, None)
        if named and layer not in self._hooks:
            self._hooks[layer] = layer.register_forward_hook(self._after_forward)
        elif not named:
            self._unhook(layer)

    def clear(self) -> None:
        """Take every branch off."""
        for layer in list(self._terms):
            self._unhook(layer)

    def held_bytes(self) -> int:
        """The memory of what is being added, as far as a forward has formed it."""
        return sum(delta.bytes() for sums in self._sums.values() for delta in sums)

    def _unhook(self, layer: Layer) -> None:
        self._terms.pop(layer, None)
        self._sums.pop(layer, None)
        handle = self._hooks.pop(layer, None)
        if handle is not None:
            handle.remove()

    def _after_forward(self, layer: Layer, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        ranges = self.rows.of(arguments[0])
        if not ranges:
            return output
        sums = self._sums_of(layer, output)
        for start, stop in ranges:
            given = arguments[0][start:stop].to(output.dtype)  # as autocast does for the layer itself
            for delta in sums:
                _add(output[start:stop], layer, given, delta)
        return output

    def _sums_of(self, layer: Layer, like: Tensor) -> list[RowDelta]:
        """What `put` has asked for, summed once, on the device and in the dtype of ``like``."""
        sums = self._sums.get(layer)
        if sums is None or not all(one.is_like(like) for one in sums):
            kind = (like.device, like.dtype)
            sums = [summed(terms, like.device).to(*kind) for terms in self._terms[layer].values()]
            self._sums[layer] = sums
        return sums


def summed(terms: Sequence[Term], device: torch.device) -> RowDelta:
    """The sum of factor * dW over terms of the same rows, as a single delta of the form that costs least.

    Factors stand side by side, [f1 up1, f2 up2] @ [down1; down2], so that two LoRAs take two products
    instead of four. Where the ranks add up to more than the matrix itself is worth, or beside a dW without
    factors, everything is added up to one matrix.
    """
    deltas = [(factor, delta.to(device, torch.float32)) for factor, delta in terms]
    biases = [factor * delta.bias for factor, delta in deltas if delta.bias is not None]
    bias = torch.stack(biases).sum(0) if biases else None
    rows = deltas[0][1].rows
    factors = _side_by_side(deltas)
    if factors is not None and sum(one.numel() for one in factors) < len(factors[0]) * factors[1].shape[1]:
        return RowDelta(factors, bias=bias, rows=rows)
    dense = torch.stack([factor * delta.matrix() for factor, delta in deltas]).sum(0)
    return RowDelta(dense=dense, bias=bias, rows=rows)


def _side_by_side(deltas: Sequence[Term]) -> tuple[Tensor, Tensor] | None:
    ups, downs = [], []
    for factor, delta in deltas:
        if delta.factors is None:
            return None
        up, down = delta.factors
        ups.append(factor * up.flatten(1))
        downs.append(down.flatten(1))
    return torch.cat(ups, dim=1), torch.cat(downs)


def _add(output: Tensor, layer: Layer, given: Tensor, delta: RowDelta) -> None:
    """Add dW x + bias to ``output`` in place."""
    if isinstance(layer, nn.Conv2d):
        product = _convolved(layer, given, delta)
        output.add_(product if delta.bias is None else product + delta.bias.reshape(-1, 1, 1))
        return
    inner, matrix = given, delta.dense
    if delta.factors is not None:
        matrix, down = delta.factors
        inner = functional.linear(given, down).to(output.dtype)
    assert matrix is not None, "it has factors or is dense"
    done = 0
    for first, last in delta.rows or ((0, output.shape[-1]),):
        piece = slice(done, done + last - first)
        _add_product(output[..., first:last], inner, matrix[piece])
        if delta.bias is not None:
            output[..., first:last].add_(delta.bias[piece])
        done = piece.stop


def _add_product(output: Tensor, inner: Tensor, matrix: Tensor) -> None:
    """Add inner @ matrix.T in place: without memory for the product where the output can be seen flat."""
    if output.dim() == 2 or output.flatten(0, -2).data_ptr() == output.data_ptr():
        output.flatten(0, -2).addmm_(inner.reshape(-1, inner.shape[-1]), matrix.t())
    else:
        output.add_(functional.linear(inner, matrix))


def _convolved(layer: nn.Conv2d, given: Tensor, delta: RowDelta) -> Tensor:
    like: Mapping[str, Any] = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    kernel = tuple(layer.kernel_size)
    if delta.factors is not None:
        up, down = delta.factors
        inner = functional.conv2d(given, down.reshape(down.shape[0], -1, *kernel), **like)
        return functional.conv2d(inner, up.reshape(*up.shape[:2], 1, 1))
    assert delta.dense is not None
    dense = delta.dense.reshape(delta.dense.shape[0], -1, *kernel)
    return functional.conv2d(given, dense, groups=layer.groups, **like)


def fitted(factors: tuple[Tensor, Tensor] | None, dense: Tensor, tolerance: float = 1e-3) -> RowDelta:
    """The cheaper of two forms of one dW: ``factors`` times the number that makes them ``dense``, if one
    does.

    A host and its extensions scale a LoRA in ways of their own; what they make of it is ``dense``, and the
    file's own factors are the same but for a number, or they are not used.
    """
    if factors is None:
        return RowDelta(dense=dense)
    up, down = (one.to(dense.device, torch.float32) for one in factors)
    product = (up.flatten(1) @ down.flatten(1)).reshape(dense.shape)
    energy = float(product.pow(2).sum())
    if energy == 0:
        return RowDelta(dense=dense)
    scale = float((product * dense).sum()) / energy
    rest = float((dense - scale * product).pow(2).sum())
    if rest > tolerance**2 * energy * scale**2:
        return RowDelta(dense=dense)
    return RowDelta(factors=(up * scale, down))
