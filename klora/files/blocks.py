"""The block of a denoiser that a layer belongs to, by the names that users know: the one place for them.

UNets (SD1, SD2, SDXL) count as lora-block-weight and the original code do: ``in0`` to ``in11`` (SDXL:
``in8``), ``mid``, ``out0`` to ``out11``. Flux and its like have ``double`` and ``single`` blocks, SD3 and
Qwen-Image ``double`` blocks alone; of any other transformer the first number in a layer's name is its
``block``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

#: In diffusers' UNets, layers j of a stage are the blocks 3 * stage + j, and each stage ends with a third
#: place for the one that changes the size.
_STAGE = 3

_UNET = re.compile(r"(down|up)_blocks\.(\d+)\.(?:(?:resnets|attentions)\.(\d+)|(?:down|up)samplers\.0)\..+")
_TRANSFORMER = re.compile(r"(single_)?transformer_blocks\.(\d+)\..+")
_NUMBERED = re.compile(r"(?:[a-z_]+\.)*?[a-z_]+\.(\d+)\..+")

#: Groups of blocks that have a number, and the one that has none.
NUMBERED = ("in", "out", "double", "single", "block")
MIDDLE = "mid"


class LayerBlock(NamedTuple):
    """``group`` is ``in``, ``mid``, ``out``, ``double``, ``single`` or ``block``; of ``mid``, number is 0."""

    group: str
    number: int

    def __str__(self) -> str:
        return self.group if self.group == MIDDLE else f"{self.group}{self.number}"


def block_of_layer(layer: str) -> LayerBlock | None:
    """The block of a canonical layer name; ``None`` for a layer outside all blocks, such as an embedding."""
    if layer.startswith("mid_block."):
        return LayerBlock(MIDDLE, 0)
    if layer == "conv_in":
        return LayerBlock("in", 0)
    if match := _UNET.fullmatch(layer):
        return _unet_block(*match.groups())
    if match := _TRANSFORMER.fullmatch(layer):
        return LayerBlock("single" if match[1] else "double", int(match[2]))
    match = _NUMBERED.fullmatch(layer)
    return LayerBlock("block", int(match[1])) if match else None


def _unet_block(side: str, stage: str, place: str | None) -> LayerBlock:
    first = _STAGE * int(stage)
    if side == "down":  # conv_in is the first of all, and a downsampler the last of its stage
        return LayerBlock("in", first + (_STAGE if place is None else int(place) + 1))
    return LayerBlock("out", first + (_STAGE - 1 if place is None else int(place)))
