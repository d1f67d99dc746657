"""A sample of the numbers that a host holds in memory, by which they are told from those of a file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from klora.planning.cast import Loras

#: So many layers are formed for a sample, fewer where they are larger: it takes some milliseconds.
_MOST_LAYERS = 4
_MOST_ELEMENTS = 2_000_000


def delta_digest(loras: Loras, shapes: Mapping[str, Sequence[int]]) -> str:
    """sha256 of both dW, bit for bit, of a few layers, 64 hexadecimal digits.

    ``shapes`` leads from the layers that can be asked for to their weights' shapes: the smallest are formed,
    spread over the model, so that numbers scaled block by block differ too. Raises `LoraFileError` if a dW
    does not fit its layer.
    """
    digest = hashlib.sha256()
    for layer in _chosen(shapes):
        for delta in loras.deltas(layer):
            digest.update(f"{layer} {list(delta.shape)} {delta.dtype} ".encode())
            digest.update(_raw(delta))
    return digest.hexdigest()


def _chosen(shapes: Mapping[str, Sequence[int]]) -> list[str]:
    sizes = {layer: math.prod(shape) for layer, shape in shapes.items()}
    least = min(sizes.values(), default=1)
    smallest = [layer for layer, size in sizes.items() if size == least]
    count = max(1, min(_MOST_LAYERS, _MOST_ELEMENTS // least))
    if len(smallest) <= count:
        return smallest
    return [smallest[(len(smallest) - 1) * at // max(1, count - 1)] for at in range(count)]


def _raw(delta: Tensor) -> bytes:
    flat = delta.detach().to("cpu").contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes()
