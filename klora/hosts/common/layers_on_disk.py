"""Layers as the LoRA files of a cast have them: what factors tell without dW, which a host forms whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from klora.errors import LoraFileError
from klora.files import LoraLayer, split_layers
from klora.hosts.common.kept_files import read_kept
from klora.scores import ENERGY_SHARE


class LayersOnDisk:
    """The layers in the files of a cast, by place; the files are read when the first layer is asked for."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = tuple(paths)

    def layer(self, name: str, place: int) -> LoraLayer | None:
        """A layer by its canonical name, or ``None`` where the file lacks it or only the host can read it."""
        return self._layers[place].get(name)

    def energy_rank(self, name: str, place: int) -> int | None:
        """The energy rank of a layer, where its factors tell it; else ``None``.

        From dW whole, the rank of a wide layer takes a second.
        """
        in_file = self.layer(name, place)
        return None if in_file is None else in_file.energy_rank(ENERGY_SHARE)

    @cached_property
    def _layers(self) -> list[Mapping[str, LoraLayer]]:
        return [_read(path) for path in self._paths]


def _read(path: str) -> Mapping[str, LoraLayer]:
    """The layers of a file, fused ones taken apart."""
    try:
        return split_layers(read_kept(path))
    except LoraFileError:  # what is unsound was refused before
        return {}
