"""dW of a layer of a file, formed some rows at a time, for who needs every number of it but none for long."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from klora.files.formulas import half_tucker
from klora.files.kinds import Shape, lokr_factor
from klora.files.layer import LoraLayer, take_rows

#: From rows, and memory with room for them, to those rows of dW: ``[rows, in * kh * kw]`` in fp32.
Form = Callable[[slice, Tensor], Tensor]

Weights = Mapping[str, Tensor]


class LayerRows:
    """dW of one layer, with alpha / rank, of which only the rows that are asked for are formed.

    Its tensors are read when this is made, which raises what `LoraLayer.delta` does, except for NaN and Inf:
    nobody has looked at any row yet. Types that know no rows are formed whole.
    """

    def __init__(self, layer: LoraLayer) -> None:
        self._layer = layer
        self._form = _form(layer)

    @property
    def shape(self) -> Shape:
        """Of dW."""
        return self._layer.shape

    def rows(self, which: slice, into: Tensor) -> Tensor:
        """The rows ``which``, each flat, in fp32 on the CPU; formed in ``into``, flat fp32, if that helps."""
        return self._form(which, into)

    def whole(self) -> Tensor:
        """All of dW, of shape ``shape``."""
        return self._layer.delta()


def _form(layer: LoraLayer) -> Form:
    former = None if layer.needs_base else _FORMERS.get(layer.type.name)
    if former is None:
        whole = layer.delta().flatten(1)
        return lambda which, _into: whole[which]
    return former(*layer.weights_and_scale(), layer)


def _cut(layer: LoraLayer, matrix: Tensor) -> Tensor:
    """What of the whole projection's rows is this layer's."""
    return matrix if layer.rows is None else take_rows(matrix, layer.rows)


def _lora(weights: Weights, scale: float, layer: LoraLayer) -> Form:
    up, down, mid = (_wide(weights.get(f"lora_{one}.weight")) for one in ("up", "down", "mid"))
    assert up is not None and down is not None  # noqa: PT018 - the type requires them
    left = _cut(layer, up.flatten(1)).mul_(scale)  # memory of its own in any case
    right = (down if mid is None else half_tucker(mid, down.flatten(1))).flatten(1)
    return lambda which, into: _product(left[which], right, into)


def _loha(weights: Weights, scale: float, layer: LoraLayer) -> Form:
    factors = []
    for which in "12":
        left, right, core = (
            _wide(weights.get(f"hada_{one.format(which)}")) for one in ("w{}_a", "w{}_b", "t{}")
        )
        assert left is not None and right is not None  # noqa: PT018 - the type requires them
        if core is not None:
            left, right = left.T, half_tucker(core, right)
        factors.append((_cut(layer, left), right.flatten(1)))
    (first, first_right), (second, second_right) = factors
    first = first * scale
    return lambda which, into: _product(first[which], first_right, into).mul_(second[which] @ second_right)


def _lokr(weights: Weights, scale: float, layer: LoraLayer) -> Form:
    wide = {name: weight.to(torch.float32) for name, weight in weights.items()}
    first, second = lokr_factor(wide, "1") * scale, lokr_factor(wide, "2").flatten(1)
    places = _cut(layer, torch.arange(first.shape[0] * second.shape[0]))

    def form(which: slice, _into: Tensor) -> Tensor:
        wanted = places[which]
        upper, lower = first[wanted // second.shape[0]], second[wanted % second.shape[0]]
        return torch.einsum("nb,nd->nbd", upper, lower).flatten(1)

    return form


def _full(weights: Weights, scale: float, layer: LoraLayer) -> Form:
    difference = _cut(layer, weights["diff"]).flatten(1)
    return lambda which, _into: difference[which].to(torch.float32) * scale


_FORMERS: Mapping[str, Callable[[Weights, float, LoraLayer], Form]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "full": _full,
}


def _wide(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.to(torch.float32)


def _product(left: Tensor, right: Tensor, into: Tensor) -> Tensor:
    height, width = left.shape[0], right.shape[1]
    return torch.mm(left, right, out=into[: height * width].view(height, width))
