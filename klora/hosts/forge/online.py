"""The lists that Forge reads in each forward of a layer whose LoRAs are applied on the fly.

A layer keeps them by parameter in a table. While sampling it has one of ours; its own comes back as it was.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_TABLE = "forge_online_loras"


class SwappedLists:
    """The tables of ``model``'s layers that `put` replaced, and the way back."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        #: Layer -> the table that it had, if any, and ours.
        self._replaced: dict[nn.Module, tuple[dict[str, Any] | None, dict[str, Any]]] = {}

    def put(self, name: str, patches: list[Any]) -> None:
        """Let the layer apply these patches to its parameter ``name`` in each forward."""
        path, _, leaf = name.rpartition(".")
        layer = self._model.get_submodule(path)
        table = getattr(layer, _TABLE, None)
        ours = {**(table or {}), leaf: patches}
        before = self._replaced[layer][0] if layer in self._replaced else table
        self._replaced[layer] = before, ours
        setattr(layer, _TABLE, ours)

    def restore(self) -> None:
        """Give every layer back what it had, unless the host has made it a new table."""
        for layer, (before, ours) in self._replaced.items():
            if getattr(layer, _TABLE, None) is not ours:
                continue
            if before is None:
                delattr(layer, _TABLE)
            else:
                setattr(layer, _TABLE, before)
        self._replaced = {}


def on_device(patch: Any, device: torch.device) -> Any:
    """A copy of a patch with its tensors on ``device``, whatever the host keeps in it."""
    if isinstance(patch, Tensor):
        return patch.to(device)
    if isinstance(patch, list | tuple):
        return type(patch)(on_device(one, device) for one in patch)
    return patch
