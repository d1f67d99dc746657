"""Weights whose numbers are packed into blocks: GGUF's, and bitsandbytes' nf4 and fp4.

A layer unpacks them in each forward, so nothing can be put in place of such a weight but LoRAs on the fly.
"""

from __future__ import annotations

import importlib

from torch import Tensor

from klora.errors import HostError


def is_packed(parameter: Tensor) -> bool:
    """Whether the numbers are in blocks, or will be once the parameter is on its device."""
    return hasattr(parameter, "gguf_cls") or _is_of_four_bits(parameter)


def shape_of(parameter: Tensor) -> tuple[int, ...]:
    """The shape of a parameter's numbers, whatever they are stored in."""
    state = getattr(parameter, "quant_state", None)
    return tuple(map(int, parameter.shape if state is None else state.shape))  # GGUF's are numpy's numbers


def from_four_bits(weight: Tensor) -> Tensor:
    """A weight of nf4 or fp4 as numbers, by the host's own function; any other as it is."""
    if not _is_of_four_bits(weight):
        return weight
    found: Tensor = importlib.import_module("backend.operations_bnb").functional_dequantize_4bit(weight)
    return found


def refuse_quantised(name: str, parameter: Tensor) -> None:
    """Raise `HostError` if a weight is stored in whole numbers that are no blocks of these."""
    if not is_packed(parameter) and not parameter.is_floating_point():
        raise HostError(
            f"K-LoRA cannot exchange weights of this checkpoint, which is quantised ({name} is "
            f"{parameter.dtype}); load it in fp16, bf16, fp8, nf4 or as GGUF, or untick K-LoRA."
        )


def _is_of_four_bits(parameter: Tensor) -> bool:
    return hasattr(parameter, "bnb_quantized")
