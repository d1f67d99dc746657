"""Parameters of a loaded model that are exchanged for a while, never written into.

A host's backup can be the very Parameter that is in the model, so writing into one would spoil it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ExchangedParameters:
    """The parameters of ``model`` that `put` replaced, and the way back."""

    def __init__(self, model: nn.Module, storage: torch.device) -> None:
        """What is replaced waits on ``storage``: where the host keeps its own backups."""
        self._model = model
        self._storage = storage
        self._replaced: dict[str, Tensor] = {}

    def current(self, name: str) -> Tensor:
        """What the model holds now."""
        module, leaf = self._place(name)
        parameter = getattr(module, leaf)
        assert isinstance(parameter, nn.Parameter)
        return parameter

    def original(self, name: str) -> Tensor:
        """What the model held before the first `put`."""
        replaced = self._replaced.get(name)
        return self.current(name) if replaced is None else replaced

    def put(self, name: str, value: Tensor) -> None:
        """Give the model a new Parameter."""
        if name not in self._replaced:
            self._replaced[name] = self.current(name).to(self._storage)
        self._set(name, value)

    def restore(self) -> None:
        """Give the model back what it held, on the devices where its parameters are by now."""
        for name, original in self._replaced.items():
            self._set(name, original.to(self.current(name).device))
        self._replaced = {}

    def forget(self) -> None:
        """Leave the model as it is: its host has loaded it afresh."""
        self._replaced = {}

    def _set(self, name: str, value: Tensor) -> None:
        if not isinstance(value, nn.Parameter):
            value = nn.Parameter(value, requires_grad=False)
        module, leaf = self._place(name)
        setattr(module, leaf, value)

    def _place(self, name: str) -> tuple[nn.Module, str]:
        path, _, leaf = name.rpartition(".")
        return self._model.get_submodule(path), leaf
