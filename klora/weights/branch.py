"""A branch beside a layer: it gives the rows of the unconditional pass more or less of a LoRA than the
others.

WebUIs and pipelines run both passes of classifier-free guidance as rows of one batch, and a weight is the
same for all rows. So the weight is merged for the conditional rows, and what the unconditional rows shall
have beyond it is added to the layer's output there: through the factors of the LoRA, which costs little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from klora.errors import HostError
from klora.weights.forms import Form, added_up

Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class RowDelta:
    """A LoRA's dW of one layer, to be multiplied with rows of its input.

    ``bias`` ``[out]`` is added as it is. ``rows`` are the outputs that this is about where it is a part of a
    fused projection.
    """

    form: Form
    bias: Tensor | None = None
    rows: tuple[tuple[int, int], ...] | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> RowDelta:
        """The same delta there, in that dtype."""
        bias = None if self.bias is None else self.bias.to(device, dtype)
        return RowDelta(self.form.to(device, dtype), bias, self.rows)

    def is_like(self, other: Tensor) -> bool:
        """Whether it lies on the device of ``other``, in its dtype."""
        held = self.form.tensors[0]
        return held.device == other.device and held.dtype == other.dtype

    def bytes(self) -> int:
        """The memory of its tensors."""
        return sum(
            one.numel() * one.element_size() for one in (*self.form.tensors, self.bias) if one is not None
        )


#: A LoRA's dW and what it is to be multiplied by.
Term = tuple[float, RowDelta]


#: Ranges (start, stop) of rows.
Ranges = tuple[tuple[int, int], ...]


def ranges_of(marks: Sequence[bool]) -> Ranges:
    """The ranges of the places that are marked."""
    edges = [place for place in range(len(marks) + 1) if _at(marks, place) != _at(marks, place - 1)]
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def _at(marks: Sequence[bool], place: int) -> bool:
    return 0 <= place < len(marks) and marks[place]


class BatchRows:
    """Which rows of a batch belong to the unconditional pass; told before each forward of the denoiser."""

    def __init__(self) -> None:
        self._batch = 0
        self._unconditional: Ranges | None = ()

    def tell(self, batch: int, unconditional: Sequence[tuple[int, int]] | None) -> None:
        """``unconditional`` are ranges (start, stop) of the ``batch`` rows that the next forward has.

        ``None`` is for rows of which nobody knows; a layer with a branch then refuses its input.
        """
        self._batch = batch
        if unconditional is not None:
            unconditional = tuple((start, stop) for start, stop in unconditional if stop > start)
        self._unconditional = unconditional

    def of(self, tensor: Tensor) -> Ranges:
        """The ranges in a layer's input. Some layers see each row cut into several that lie side by side."""
        if self._unconditional == ():
            return ()
        if self._unconditional is None or not self._batch or tensor.shape[0] % self._batch:
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
        self._rows: dict[Layer, BatchRows] = {}
        self._terms: dict[Layer, dict[str, Sequence[Term]]] = {}
        self._sums: dict[Layer, list[RowDelta]] = {}

    def put(self, layer: Layer, name: str, terms: Sequence[Term], rows: BatchRows | None = None) -> None:
        """From now on add factor * dW of each term to the unconditional rows of a layer's output.

        ``name`` tells several terms of one layer apart, such as those of the parts of a fused projection.
        ``rows`` is given where the layer's rows may be others than those of the denoiser.
        """
        self._rows[layer] = self.rows if rows is None else rows
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
        self._rows.pop(layer, None)
        self._terms.pop(layer, None)
        self._sums.pop(layer, None)
        handle = self._hooks.pop(layer, None)
        if handle is not None:
            handle.remove()

    def _after_forward(self, layer: Layer, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        ranges = self._rows[layer].of(arguments[0])
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
            named = self._terms[layer].values()
            sums = [one.to(like.device, like.dtype) for terms in named for one in summed(terms, like.device)]
            self._sums[layer] = sums
        return sums


def summed(terms: Sequence[Term], device: torch.device) -> list[RowDelta]:
    """The sum of factor * dW over terms of the same rows, as few deltas as do it with the least work."""
    deltas = [(factor, delta.to(device, torch.float32)) for factor, delta in terms]
    first, *others = added_up([delta.form.times(factor) for factor, delta in deltas])
    biases = [factor * delta.bias for factor, delta in deltas if delta.bias is not None]
    bias = torch.stack(biases).sum(0) if biases else None
    rows = deltas[0][1].rows
    return [RowDelta(first, bias, rows), *(RowDelta(form, rows=rows) for form in others)]


def _add(output: Tensor, layer: Layer, given: Tensor, delta: RowDelta) -> None:
    """Add dW x + bias to ``output`` in place."""
    if isinstance(layer, nn.Conv2d):
        output.add_(delta.form.convolved(layer, given))
        if delta.bias is not None:
            output.add_(delta.bias.reshape(-1, 1, 1))
        return
    outputs = [output] if delta.rows is None else [output[..., first:last] for first, last in delta.rows]
    delta.form.add_to(outputs, given)
    if delta.bias is not None:
        pieces = torch.split(delta.bias, [one.shape[-1] for one in outputs])
        for one, bias in zip(outputs, pieces, strict=True):
            one.add_(bias)
