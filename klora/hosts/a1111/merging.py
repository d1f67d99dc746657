"""What A1111 makes of a layer's weight, one loaded network after the other, without touching the layer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from klora.hosts.a1111.modules import parts_of
from klora.hosts.a1111.multiplier import multiplied
from klora.hosts.common.boundary import is_lack_of_memory
from klora.hosts.common.checks import does_not_fit

#: Network modules whose dW is made of their own tensors alone.
_OF_THEIR_OWN = frozenset(
    {"NetworkModuleLora", "NetworkModuleHada", "NetworkModuleLokr", "NetworkModuleFull"}
)
#: An inpainting checkpoint's first convolution has so many input channels, and a LoRA for it five fewer.
_INPAINTING = 9


def adds_the_same(module: Any) -> bool:
    """Whether a network's module adds the same dW to every weight, as DoRA, GLoRA, IA3 and OFT do not."""
    return all(
        type(part).__name__ in _OF_THEIR_OWN and getattr(part, "dora_scale", None) is None
        for part in parts_of(module)
    )


def updown(network: Any, module: Any, weight: Tensor, layer: str) -> tuple[Tensor, Tensor | None]:
    """(dW, change of the bias) as the host would add them to ``weight`` by a network's ``module``.

    Raises `LoraFileError`, which calls the layer ``layer``, where the host would skip it without a word;
    a lack of memory as it is.
    """
    name = network.network_on_disk.name
    try:
        with torch.no_grad():
            delta, bias = module.calc_updown(weight)
    except RuntimeError as error:
        if is_lack_of_memory(error):
            raise
        raise does_not_fit(name, layer, str(error)) from error
    if delta.shape != weight.shape and weight.shape[1:2] != (_INPAINTING,):
        raise does_not_fit(name, layer, f"{list(delta.shape)} instead of {list(weight.shape)}")
    return delta, bias


def merged(
    networks: Sequence[tuple[Any, Any, float]], weight: Tensor, layer: str
) -> tuple[Tensor, Tensor | None]:
    """(weight in fp32, change of the bias) after networks, each by its module for this layer, if it has one,
    times its share, on what those before it have left.
    """
    found, biases = weight.float(), list[Tensor]()
    for network, module, share in networks:
        if share == 0 or module is None:
            continue
        with ExitStack() as stack:
            if share != 1:
                stack.enter_context(multiplied(network, share))
            delta, bias = updown(network, module, found, layer)
        found = found + _padded(delta, found)
        biases += [] if bias is None else [bias]
    return found, torch.stack(biases).sum(0) if biases else None


def _padded(delta: Tensor, weight: Tensor) -> Tensor:
    if delta.shape == weight.shape:
        return delta
    return functional.pad(delta, (0, 0, 0, 0, 0, weight.shape[1] - delta.shape[1]))
