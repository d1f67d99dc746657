"""dW of a layer of a file, formed some rows at a time, for who needs every number of it but none for long."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from klora.files.formulas import half_tucker
from klora.files.kinds import Shape
from klora.files.late_torch import Tensor, torch
from klora.files.layer import LoraLayer, take_rows
from klora.files.row_blocks import form_rows

#: From rows, and memory with room for them, to those rows of dW: ``[rows, in * kh * kw]`` in fp32.
Form = Callable[[slice, Tensor], Tensor]


class LayerRows:
    """dW of one layer, with alpha / rank, of which only the rows that are asked for are formed.

    Its tensors are read when this is made, which raises what `LoraLayer.delta` does, except for NaN and Inf:
    nobody has looked at any row yet. Types that know no rows are formed whole. ``base`` is as there.
    """

    def __init__(self, layer: LoraLayer, base: Tensor | None = None) -> None:
        self._layer = layer
        self._base = base
        self._form = _form(layer, base)

    @property
    def shape(self) -> Shape:
        """Of dW."""
        return self._layer.shape

    def rows(self, which: slice, into: Tensor) -> Tensor:
        """The rows ``which``, each flat, in fp32 on the CPU; formed in ``into``, flat fp32, if that helps."""
        return self._form(which, into)

    def whole(self) -> Tensor:
        """All of dW, of shape ``shape``."""
        return self._layer.delta(self._base)

    def energy_rank(self, share: float) -> int | None:
        """As `LoraLayer.energy_rank`."""
        return self._layer.energy_rank(share)


def _form(layer: LoraLayer, base: Tensor | None) -> Form:
    """How the layer's rows are formed; reads its tensors."""
    is_in_pieces = layer.rows is not None and len(layer.rows) > 1
    if layer.needs_base:
        whole = _put_together(layer, base)
        return lambda which, _into: whole[which]
    if is_in_pieces and layer.type.name != "lora":
        whole = layer.delta().flatten(1)
        return lambda which, _into: whole[which]
    weights, scale = layer.weights_and_scale()
    if layer.type.name == "lora":
        return _lora(weights, scale, layer)
    start, stop = (0, layer.shape[0]) if layer.rows is None else layer.rows[0]
    if layer.type.name != "full":  # as large as dW: its rows are cast one block at a time
        weights = {name: weight.to(torch.float32) for name, weight in weights.items()}

    def form(which: slice, _into: Tensor) -> Tensor:
        places = slice(start + (which.start or 0), min(stop, start + (which.stop or stop)), which.step)
        return form_rows(layer.type, weights, None, places).flatten(1).to(torch.float32) * scale

    return form


def _put_together(layer: LoraLayer, base: Tensor | None) -> Tensor:
    """dW of a type that needs the clean weight, without a copy in fp64 of more than a block of it."""
    whole, start = torch.empty(layer.shape), 0
    for block in layer.delta_blocks(base):
        whole[start : start + block.shape[0]] = block
        start += block.shape[0]
    return whole.flatten(1)


def _lora(weights: Mapping[str, Tensor], scale: float, layer: LoraLayer) -> Form:
    """A product of two matrices, also with a Tucker core, formed where there is room for it."""
    up, down = (weights[f"lora_{one}.weight"].to(torch.float32) for one in ("up", "down"))
    left = up.flatten(1) if layer.rows is None else take_rows(up.flatten(1), layer.rows)
    left = left.mul_(scale)  # memory of its own in any case
    core = weights.get("lora_mid.weight")
    right = down if core is None else half_tucker(core.to(torch.float32), down.flatten(1))
    right = right.flatten(1)

    def form(which: slice, into: Tensor) -> Tensor:
        rows = left[which]
        height, width = rows.shape[0], right.shape[1]
        return torch.mm(rows, right, out=into[: height * width].view(height, width))

    return form
