"""Branches beside the layers of a loaded denoiser: a LoRA's other share of the unconditional rows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Any, cast

import torch

from klora.hosts.common.layers_on_disk import LayersOnDisk
from klora.hosts.forge_family.deltas import Deltas
from klora.hosts.forge_family.denoiser import PatchedDenoiser
from klora.hosts.forge_family.layers import ChangedLayer
from klora.hosts.forge_family.reading import state_of
from klora.hosts.forge_family.rows import AttentionRows
from klora.schedule import LayerShares
from klora.weights.branch import Branches, Layer, RowDelta, Term
from klora.weights.file_forms import fitted, form_of
from klora.weights.forms import Form, Whole, dtype_to_keep

#: LoRAs whose factors, times what the host makes of them, are kept from one picture to the next.
MOST_KEPT = 2
_kept: OrderedDict[Hashable, dict[str, RowDelta]] = OrderedDict()


class SideBranches:
    """The branches beside the layers of ``denoiser``, for the LoRA files of a cast."""

    def __init__(
        self, denoiser: PatchedDenoiser, deltas: Deltas, on_disk: LayersOnDisk, paths: Sequence[str]
    ) -> None:
        self._denoiser = denoiser
        self._deltas = deltas
        self._on_disk = on_disk
        self._paths = paths
        self._branches = Branches()
        self._rows = AttentionRows(self._branches.rows)
        self._in_use: set[str] = set()

    def put(self, layer: ChangedLayer, shares: LayerShares) -> None:
        """Give the unconditional rows what their shares differ by from the conditional ones.

        Norms and other layers without a matrix are the same for all rows.
        """
        name = layer.view.name
        terms = [] if layer.weight is None else self._terms(layer, layer.weight, shares)
        if not terms and name not in self._in_use:
            return
        # Some of the hosts' linears are no nn.Linear, but all are called like one.
        module = cast("Layer", self._denoiser.unet.model.get_submodule(layer.module))
        self._branches.put(module, name, terms, self._rows.of(layer.module))
        (self._in_use.add if terms else self._in_use.discard)(name)

    def _terms(self, layer: ChangedLayer, weight: str, shares: LayerShares) -> Sequence[Term]:
        differing = [
            (place, difference)
            for place, difference in enumerate(shares.difference)
            if difference and place in layer.needs_base
        ]
        if differing and (any(layer.needs_base.values()) or not self._denoiser.is_sum_of_others(weight)):
            return [(1.0, self._between(layer, weight, shares))]
        return [(difference, self._row_delta(place, layer)) for place, difference in differing]

    @torch.inference_mode()
    def _between(self, layer: ChangedLayer, weight: str, shares: LayerShares) -> RowDelta:
        """From what the host makes of the layer for the conditional rows to that for the unconditional ones.

        Where a LoRA's change depends on the weight, as DoRA's does, it is another where the others have
        other shares: there is no dW of its own that could be added.
        """
        assert shares.unconditional is not None, "the rows differ"
        one = self._deltas.of_all(layer, shares.unconditional)
        other = self._deltas.of_all(layer, shares.conditional)
        biases = [
            difference * bias
            for place, difference in enumerate(shares.difference)
            if difference and (bias := self._deltas.of_bias(place, layer)) is not None
        ]
        storage = self._denoiser.unet.offload_device
        delta = Whole(one - other).to(storage, dtype_to_keep(self._denoiser.clean(weight)))
        return RowDelta(delta, torch.stack(biases).sum(0).to(storage) if biases else None, layer.rows)

    def tell_rows(self, arguments: Sequence[Any], keywords: dict[str, Any]) -> dict[str, Any]:
        """Before a forward of the denoiser with these arguments: which of its rows are unconditional. Returns
        the keywords with which it is to go on.

        Raises `HostError` if there is a branch and nobody knows.
        """
        if not self._in_use:
            return keywords
        return self._rows.tell(len(arguments[0] if arguments else keywords["x"]), keywords)

    def clear(self) -> None:
        """Take every branch off."""
        self._branches.clear()
        self._in_use.clear()

    def _row_delta(self, place: int, layer: ChangedLayer) -> RowDelta:
        kept = self._kept[place]
        name = layer.view.name
        if name not in kept:
            delta = self._formed(place, layer)
            if isinstance(delta.form, Whole):
                return delta  # large, and may depend on the checkpoint
            kept[name] = delta
        return kept[name]

    @torch.inference_mode()
    def _formed(self, place: int, layer: ChangedLayer) -> RowDelta:
        dense = self._deltas.of_weight(place, layer)
        form = fitted(self._form_in_file(place, layer), dense)
        if isinstance(form, Whole):
            assert layer.weight is not None, "it has a dW"
            dtype = dtype_to_keep(self._denoiser.clean(layer.weight))
        else:
            dtype = torch.float32
        bias = self._deltas.of_bias(place, layer)
        storage = self._denoiser.unet.offload_device  # a branch takes it from there in its first forward
        return RowDelta(form.to(storage, dtype), None if bias is None else bias.to(storage), layer.rows)

    def _form_in_file(self, place: int, layer: ChangedLayer) -> Form | None:
        in_file = self._on_disk.layer(layer.view.name, place)
        return None if in_file is None or layer.needs_base[place] else form_of(in_file)

    @cached_property
    def _kept(self) -> list[dict[str, RowDelta]]:
        return [self._kept_of(place, path) for place, path in enumerate(self._paths)]

    def _kept_of(self, place: int, path: str) -> dict[str, RowDelta]:
        key = state_of(path, self._denoiser.patches.strengths(place))
        kept = _kept.setdefault(key, {})
        _kept.move_to_end(key)
        while len(_kept) > MOST_KEPT:
            _kept.popitem(last=False)
        return kept
