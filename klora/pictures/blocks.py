"""Which block of the network a layer belongs to, for axes and labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

_BLOCK = re.compile(
    r"(down_blocks|up_blocks|input_blocks|output_blocks|transformer_blocks|single_transformer_blocks"
    r"|double_blocks|single_blocks|joint_blocks)[._](\d+)|(mid_block|middle_block)"
)
_SHORT = {
    "down_blocks": "down",
    "up_blocks": "up",
    "input_blocks": "input",
    "output_blocks": "output",
    "transformer_blocks": "double",
    "single_transformer_blocks": "single",
    "double_blocks": "double",
    "single_blocks": "single",
    "joint_blocks": "joint",
}


def block_of(layer: str) -> str:
    """The block of the network a layer belongs to, short enough for a tick: ``down 1``, ``mid``."""
    found = _BLOCK.search(layer)
    if found is None:
        return ""
    return "mid" if found[3] else f"{_SHORT[found[1]]} {found[2]}"


def runs_of_blocks(layers: Sequence[str]) -> list[tuple[str, int, int]]:
    """(name, first, count) of each run of layers that belong to one block."""
    runs = []
    first = 0
    for name, run in groupby(layers, key=block_of):
        count = len(list(run))
        runs.append((name, first, count))
        first += count
    return runs
