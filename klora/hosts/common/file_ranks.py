"""Ranks that a LoRA's file tells without dW: a host forms dW whole, from which the rank of a wide layer takes
a second."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from klora.errors import LoraFileError
from klora.files import LoraLayer, read_lora, split_layers
from klora.scores import ENERGY_SHARE


class FileRanks:
    """Energy ranks in the files of a cast, by place; the files are read when the first is asked for."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = tuple(paths)

    def energy_rank(self, layer: str, place: int) -> int | None:
        """The energy rank of a layer by its canonical name, where the factors tell it; else ``None``."""
        in_file = self.layer(layer, place)
        return None if in_file is None else in_file.energy_rank(ENERGY_SHARE)

    def layer(self, layer: str, place: int) -> LoraLayer | None:
        """A layer as the file of a LoRA has it, or ``None``."""
        return self._layers[place].get(layer)

    @cached_property
    def _layers(self) -> list[dict[str, LoraLayer]]:
        return [layers_of_file(path) for path in self._paths]


def layers_of_file(path: str) -> dict[str, LoraLayer]:
    """The layers of a file by canonical name, fused ones taken apart; none if only the host can read it."""
    try:
        return split_layers(read_lora(path))
    except LoraFileError:  # what is unsound was refused before
        return {}
