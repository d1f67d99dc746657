"""Parameters of a loaded model that are exchanged for a while, never written into.

A host's backup can be the very Parameter that is in the model, so writing into one would spoil it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class ExchangedParameters:
    """The parameters of ``model`` that `put` replaced, and the way back."""

    def __init__(self, model: nn.Module, storage: torch.device) -> None:
        """What is replaced waits on ``storage``: where the host keeps its own backups."""
        self._model = model
        self._storage = storage
        self._replaced: dict[str, Tensor] = {}
        # Weakly: one that the host has moved elsewhere must not take up the device that it came from.
        self._ours: dict[str, weakref.ref[Tensor]] = {}

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

    def is_lost(self, name: str) -> bool:
        """Whether the host has put a parameter of its own in the place of what `put` gave the model."""
        ours = self._ours.get(name)
        return ours is not None and self.current(name) is not ours()

    def put(self, name: str, value: Tensor) -> None:
        """Give the model a new Parameter."""
        if name not in self._replaced:
            self._replaced[name] = self.current(name).to(self._storage)
        self._set(name, value)
        self._ours[name] = weakref.ref(self.current(name))

    def restore_where_untouched(self) -> None:
        """The host has loaded the model afresh: give back what it did not replace by its own."""
        self.forget_of([name for name in self._ours if self.is_lost(name)])
        self.restore()

    def forget_of(self, names: Iterable[str]) -> None:
        """Leave these as they are in the model."""
        for name in names:
            self._replaced.pop(name, None)
            self._ours.pop(name, None)

    def restore(self) -> None:
        """Give the model back what it held, on the devices where its parameters are by now."""
        devices = {name: self.current(name).device for name in self._replaced}
        for name, original in self._replaced.items():
            self._set(name, original)  # which frees ours, so that the device has room
        replaced = self._replaced
        self.forget()
        for name, original in replaced.items():
            if original.device != devices[name]:
                self._set(name, original.to(devices[name]))

    def forget(self) -> None:
        """Leave the model as it is: its host has read other weights into it."""
        self._replaced, self._ours = {}, {}

    def _set(self, name: str, value: Tensor) -> None:
        if not isinstance(value, nn.Parameter):
            value = nn.Parameter(value, requires_grad=False)
        module, leaf = self._place(name)
        setattr(module, leaf, value)

    def _place(self, name: str) -> tuple[nn.Module, str]:
        path, _, leaf = name.rpartition(".")
        return self._model.get_submodule(path), leaf
