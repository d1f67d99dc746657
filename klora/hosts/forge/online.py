"""The lists that Forge reads in each forward of a layer whose LoRAs are applied on the fly.

A layer keeps them by parameter in a table. They are swapped while sampling, never emptied or deleted, and the
identical list objects go back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from klora.hosts.forge_family import Losers, Region, assembled

_TABLE = "forge_online_loras"

#: The name under which the host finds, for the time of a pass, how rows with different winners are made.
BY_ROWS = "K-LoRA by rows"


class SwappedLists:
    """The lists of ``model`` that `put` replaced, and the way back."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        #: Parameter -> its layer, the layer's table, and what stood there, if anything.
        self._replaced: dict[str, tuple[nn.Module, dict[str, Any], list[Any] | None]] = {}

    def put(self, name: str, patches: list[Any]) -> None:
        """Let the layer apply these patches to its parameter ``name`` in each forward."""
        path, _, leaf = name.rpartition(".")
        layer = self._model.get_submodule(path)
        table = layer.__dict__.setdefault(_TABLE, {})
        self._replaced.setdefault(name, (layer, table, table.get(leaf)))
        table[leaf] = patches

    def restore(self) -> None:
        """Give every layer back the list that it had."""
        for name, (layer, table, original) in self._replaced.items():
            leaf = name.rpartition(".")[2]
            if original is None:
                table.pop(leaf, None)
            else:
                table[leaf] = original
            if not table and layer.__dict__.get(_TABLE) is table:
                delattr(layer, _TABLE)
        self._replaced = {}

    def forget(self) -> None:
        """Leave the lists as they are: the host has made new ones."""
        self._replaced = {}


def list_by_rows(regions: Sequence[Region], patches: Callable[[Losers], list[Any]]) -> list[Any]:
    """The list for a parameter: the patches themselves, or one that stands for several lists by rows."""
    if len(regions) == 1:
        return patches(regions[0].losers)
    lists = {region.losers: patches(region.losers) for region in regions}
    return [[1.0, (BY_ROWS, (tuple(regions), lists)), 1.0, None, None]]


def calculator(merge: Callable[..., Tensor]) -> Callable[[Tensor, float, Any], Tensor]:
    """What the host calls for a patch of `list_by_rows`: (weight, strength, its value) -> merged weight."""

    def calculated(weight: Tensor, _strength: float, value: Any) -> Tensor:
        regions, lists = value

        def merged(losers: Losers) -> Tensor:
            return merge(lists[losers], weight, "K-LoRA", computation_dtype=weight.dtype)

        return assembled(regions, merged)

    return calculated


def on_device(patch: Any, device: torch.device) -> Any:
    """A copy of a patch with its tensors on ``device``, whatever the host keeps in it."""
    if isinstance(patch, Tensor):
        return patch.to(device)
    if isinstance(patch, list):
        return [on_device(one, device) for one in patch]
    if isinstance(patch, tuple):
        return tuple(on_device(one, device) for one in patch)
    return patch
