"""Which WebUI this is."""

from __future__ import annotations

from collections.abc import Sequence

from klora.errors import HostError
from klora.hosts.a1111 import A1111Host
from klora.hosts.common.foreign import foreign, has_module
from klora.hosts.common.protocol import WebUIHost
from klora.hosts.forge import ForgeHost
from klora.hosts.model_patcher import ModelPatcherHost


def this_host() -> WebUIHost:
    """The adapter for the WebUI that runs this process; raises `HostError` naming what was probed."""
    if A1111Host.is_here():
        return A1111Host()
    if ForgeHost.is_here():
        return ForgeHost()
    if ModelPatcherHost.is_here():
        return ModelPatcherHost()
    raise foreign() or HostError(_unknown(ModelPatcherHost.missing()))


def _unknown(missing: Sequence[str]) -> str:
    """One sentence for a WebUI without an adapter: what it is, or what was probed."""
    if has_module("ldm_patched") and "unet.add_weight_wrapper" in missing and "unet.patches" not in missing:
        return (
            "K-LoRA does not run on Forge Classic, whose patcher cannot tell one set of LoRAs from another "
            f"({', '.join(missing)} missing); use Forge Neo, reForge or Forge, or untick K-LoRA."
        )
    return (
        "K-LoRA does not know this WebUI. Probed: the Lora extension's merge per layer "
        "(network_apply_weights with originals and loaded_networks), as in AUTOMATIC1111; "
        "a denoiser with lora_patches and lora_loader, as in Forge; "
        f"a patcher as in Forge Neo and reForge, of which {', '.join(missing)} is missing. "
        "Update K-LoRA or untick it."
    )
