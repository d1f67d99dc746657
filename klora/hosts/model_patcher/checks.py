"""Denoisers whose weights cannot be exchanged while they run."""

from __future__ import annotations

from typing import Any

from klora.errors import HostError
from klora.hosts.forge_family import refuse_compiled


def refuse(unet: Any) -> None:
    """Raise `HostError` if the denoiser of a patcher runs compiled, or applies LoRAs in ways of its own."""
    refuse_compiled(unet.model.diffusion_model, unet.object_patches.values())
    # Forge Neo compiles anew in each call, and notes on the model that it does.
    if getattr(unet.model, "_torch_compile_config", None) is not None:
        raise HostError(
            "K-LoRA cannot change weights of a model that torch.compile compiles; switch Torch Compile off, "
            "or untick K-LoRA."
        )
    if getattr(unet, "online_patches", None) or getattr(unet.model.diffusion_model, "loras", None):
        raise HostError(
            "K-LoRA cannot reach the LoRAs of this checkpoint, which applies them by kernels of its own "
            "(int8 with LoRAs on the fly, or Nunchaku); load another version of it, or untick K-LoRA."
        )
