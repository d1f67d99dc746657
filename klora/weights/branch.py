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

    def to(self, like: Tensor) -> RowDelta:
        """The same on the device and in the dtype of ``like``."""
        factors = (
            None if self.factors is None else tuple(one.to(like.device, like.dtype) for one in self.factors)
        )
        dense, bias = (
            None if one is None else one.to(like.device, like.dtype) for one in (self.dense, self.bias)
        )
        return RowDelta(factors, dense, bias, self.rows)  # type: ignore[arg-type]


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
        self._terms: dict[Layer, dict[str, list[tuple[float, RowDelta]]]] = {}

    def put(self, layer: Layer, name: str, terms: Sequence[tuple[float, RowDelta]]) -> None:
        """From now on add factor * dW of each term to the unconditional rows of a layer's output.

        ``name`` tells several terms of one layer apart, such as those of the parts of a fused projection.
        """
        wanted = [(factor, delta) for factor, delta in terms if factor]
        named = self._terms.setdefault(layer, {})
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

    def _unhook(self, layer: Layer) -> None:
        self._terms.pop(layer, None)
        handle = self._hooks.pop(layer, None)
        if handle is not None:
            handle.remove()

    def _after_forward(self, layer: Layer, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        given = arguments[0]
        for start, stop in self.rows.of(given):
            for name, terms in self._terms[layer].items():
                self._terms[layer][name] = terms = [(factor, delta.to(given)) for factor, delta in terms]
                for factor, delta in terms:
                    _add(output[start:stop], layer, given[start:stop], factor, delta)
        return output


def _add(output: Tensor, layer: Layer, given: Tensor, factor: float, delta: RowDelta) -> None:
    """Add factor * (dW x + bias) to ``output`` in place."""
    product = _product(layer, given, delta)
    if delta.bias is not None:
        shape = (-1, 1, 1) if isinstance(layer, nn.Conv2d) else (-1,)
        product = product + delta.bias.reshape(shape)
    if delta.rows is None:
        output.add_(product.to(output.dtype), alpha=factor)
        return
    done = 0
    for first, last in delta.rows:
        output[..., first:last].add_(product[..., done : done + last - first].to(output.dtype), alpha=factor)
        done += last - first


def _product(layer: Layer, given: Tensor, delta: RowDelta) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return _convolved(layer, given, delta)
    if delta.factors is not None:
        up, down = (one.flatten(1) for one in delta.factors)  # of a convolution of 1 x 1 in the file, perhaps
        return functional.linear(functional.linear(given, down), up)
    assert delta.dense is not None
    return functional.linear(given, delta.dense.reshape(delta.dense.shape[0], -1))


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
