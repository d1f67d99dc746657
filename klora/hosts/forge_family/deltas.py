"""What the LoRAs of a cast add to the layers of a loaded denoiser, by the host's own merge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from klora.files.layer import take_rows
from klora.hosts.common.checks import does_not_fit
from klora.hosts.forge_family.cast_patches import MemberShares
from klora.hosts.forge_family.denoiser import PatchedDenoiser
from klora.hosts.forge_family.layers import ChangedLayer


class Deltas:
    """The dW of the LoRAs called ``names`` in the layers of a denoiser, in fp32."""

    def __init__(self, denoiser: PatchedDenoiser, names: Sequence[str]) -> None:
        self._denoiser = denoiser
        self._names = names
        self._last: dict[int, tuple[str, Tensor]] = {}

    def of_weight(self, place: int, layer: ChangedLayer) -> Tensor:
        """dW of the LoRA at a place in the cast, for a layer with a matrix.

        Raises `LoraFileError` if it does not fit the layer.
        """
        assert layer.weight is not None, "only a matrix is weighed"
        weight, whole = self._last.get(place, ("", None))
        if whole is None or weight != layer.weight:  # q, k and v of one fused weight follow each other
            whole = self._whole(place, layer, layer.weight)
            self._last[place] = (layer.weight, whole)
        return _rows(whole, layer)

    @torch.inference_mode()
    def of_all(self, layer: ChangedLayer, shares: MemberShares) -> Tensor:
        """The weight of the layer with everything merged, the cast by these shares, each on what those before
        it have left. Raises `LoraFileError` if one does not fit.
        """
        assert layer.weight is not None, "only a matrix is merged"
        base = self._denoiser.base(layer.weight, is_needed=True)
        try:
            whole = self._denoiser.merged(
                self._denoiser.patches.weighted(shares, layer.weight), base, layer.weight
            )
        except RuntimeError as error:
            raise does_not_fit(", ".join(self._names), layer.view.name, str(error)) from error
        return _rows(whole, layer)

    def of_bias(self, place: int, layer: ChangedLayer) -> Tensor | None:
        """What the LoRA adds to the bias of the layer; ``None`` if it leaves it alone."""
        bias = f"{layer.module}.bias"
        if not self._denoiser.patches.own(place, bias):
            return None
        return _rows(self._whole(place, layer, bias), layer)

    def forget(self) -> None:
        """Free the memory of what was formed last."""
        self._last = {}

    @torch.inference_mode()
    def _whole(self, place: int, layer: ChangedLayer, name: str) -> Tensor:
        needs_base = layer.needs_base[place]
        base = self._denoiser.base(name, needs_base)
        try:
            merged = self._denoiser.merged(self._denoiser.patches.own(place, name), base, name)
        except RuntimeError as error:
            raise does_not_fit(self._names[place], layer.view.name, str(error)) from error
        return merged - base if needs_base else merged


def _rows(whole: Tensor, layer: ChangedLayer) -> Tensor:
    return whole if layer.rows is None else take_rows(whole, layer.rows)
