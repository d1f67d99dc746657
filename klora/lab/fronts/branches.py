"""A pair of LoRAs as low-rank branches whose shares are set for each row of a batch.

So one batch holds many methods, balances and seeds of a pair, which is what makes tens of thousands of
pictures affordable on a processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from klora.files import LoraFile
from klora.files.conversion import state_dict_in
from klora.lab.lora_files import layers


@dataclass(frozen=True)
class Branch:
    """Both LoRAs of one layer side by side: ``down`` [ranks, in, ...] and ``up`` [out, ranks]."""

    down: Tensor
    up: Tensor
    ranks: tuple[int, int]
    """How many of the ranks are content's and how many style's; 0 where a LoRA leaves the layer alone."""


@dataclass
class Pair:
    """The branches of a pair by the layer's name, and the shares that hold now.

    ``names`` are the denoiser's own names of the layers, in the order of the shares' second axis.
    """

    names: tuple[str, ...]
    branches: dict[str, Branch]
    shares: Tensor | None = field(default=None)
    """[rows, layers, 2], or ``None`` for no LoRA at all."""


def factors(file: LoraFile) -> dict[str, tuple[Tensor, Tensor]]:
    """Down and up of every layer of a file under kohya's names; the scale is in up."""
    stored = state_dict_in(file, "kohya")
    found = {}
    for stem in sorted({key.split(".", 1)[0] for key in stored}):
        up, down = (stored[f"{stem}.lora_{way}.weight"].float() for way in ("up", "down"))
        found[stem] = (down, float(stored[f"{stem}.alpha"]) / len(down) * up.flatten(1))
    return found


def pair_of(denoiser: nn.Module, content: LoraFile, style: LoraFile) -> Pair:
    """The branches of two files."""
    sides = (factors(content), factors(style))
    own_names = {kohya: kohya.removeprefix("lora_unet_") for kohya in (*sides[0], *sides[1])}
    dotted = {name.replace(".", "_"): name for name, _ in denoiser.named_modules()}
    branches = {}
    for stem in layers(denoiser):
        present = [side[stem] for side in sides if stem in side]
        if present:
            down, up = torch.cat([one[0] for one in present]), torch.cat([one[1] for one in present], 1)
            ranks = tuple(len(side[stem][0]) if stem in side else 0 for side in sides)
            branches[dotted[own_names[stem]]] = Branch(down, up, (ranks[0], ranks[1]))
    return Pair(tuple(branches), branches)


def _branch_output(module: nn.Module, seen: Tensor, branch: Branch, shares: Tensor) -> Tensor:
    """What a branch adds to a layer's output, with shares [rows, 2]."""
    each = shares.repeat_interleave(torch.tensor(branch.ranks), dim=1)
    if isinstance(module, nn.Conv2d):
        low = functional.conv2d(seen, branch.down, None, module.stride, module.padding, module.dilation)
        return functional.conv2d(low * each[:, :, None, None], branch.up[:, :, None, None])
    low = seen @ branch.down.flatten(1).T
    return (low * each.reshape(len(each), *[1] * (low.ndim - 2), -1)) @ branch.up.T


@contextmanager
def attached(denoiser: nn.Module, pair: Pair) -> Iterator[Pair]:
    """The denoiser with the pair's branches on it, which follow ``pair.shares``."""

    def hook(place: int, branch: Branch) -> Any:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if pair.shares is None:
                return None
            shares = pair.shares[:, place]
            if not shares.any():
                return None
            return output + _branch_output(module, inputs[0], branch, shares)

        return add

    known = dict(denoiser.named_modules())
    handles = [
        known[name].register_forward_hook(hook(place, pair.branches[name]))
        for place, name in enumerate(pair.names)
    ]
    try:
        yield pair
    finally:
        for handle in handles:
            handle.remove()
