"""What A1111 adds to a layer of the denoiser, by the layer's own name.

That is one module of a network, or three: of SD3's fused q, k and v a file in diffusers' dialect has the
parts, which the host keeps under the layer's name and ``_q_proj``, ``_k_proj``, ``_v_proj``. It merges them
if it has all three, and leaves them out of its functional mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

DENOISER = "diffusion_model_"

_PARTS = ("_q_proj", "_k_proj", "_v_proj")
#: The host's class of a fused layer.
_FUSED = "QkvLinear"


class FusedModule:
    """The modules of a fused layer's parts as one of the whole layer."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = tuple(parts)
        self.network = parts[0].network
        self.sd_module = parts[0].sd_module

    def calc_updown(self, weight: Tensor) -> tuple[Tensor, None]:
        """(dW, nothing): the host leaves the biases of a fused layer alone."""
        rows = weight.chunk(len(self.parts), 0)
        made = (part.calc_updown(one)[0] for part, one in zip(self.parts, rows, strict=True))
        return torch.vstack(list(made)), None


def parts_of(module: Any) -> tuple[Any, ...]:
    """The host's own modules that a module stands for: usually itself alone."""
    return module.parts if isinstance(module, FusedModule) else (module,)


class HostModules:
    """The modules by which the host changes the layers of a denoiser."""

    def __init__(self, networks: Any) -> None:
        self._networks = networks

    @property
    def is_functional(self) -> bool:
        """Whether each forward goes through the factors; the host leaves out DoRA's magnitudes there."""
        options = getattr(getattr(self._networks, "shared", None), "opts", None)
        return bool(getattr(options, "lora_functional", False))

    def layers(self, network: Any) -> list[str]:
        """The denoiser's layers that the host changes by a network, each once."""
        named = (name for name in network.modules if name.startswith(DENOISER))
        names = dict.fromkeys(_layer_of(name, network.modules[name]) for name in named)
        return [name for name in names if self.of(network, name) is not None]

    def of(self, network: Any, layer: str) -> Any:
        """The module of a network for a layer; ``None`` if the host does not change the layer by it."""
        module = network.modules.get(layer)
        if module is not None or self.is_functional:
            return module
        parts = [network.modules.get(layer + part) for part in _PARTS]
        are_parts = all(part is not None and _is_of_fused(part) for part in parts)
        return FusedModule(parts) if are_parts else None


def _layer_of(name: str, module: Any) -> str:
    part = next((part for part in _PARTS if name.endswith(part)), "")
    return name.removesuffix(part) if part and _is_of_fused(module) else name


def _is_of_fused(module: Any) -> bool:
    return type(module.sd_module).__name__ == _FUSED
