"""The few questions that a WebUI answers to the shared code, and which WebUI this is."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from klora.errors import HostError
from klora.weights import Seam


class WebUIHost(Protocol):
    """One WebUI."""

    name: str

    def after_activation(self, p: Any, names: Collection[str]) -> None:
        """The host has loaded the LoRAs of a pass, and has not yet encoded the prompt.

        Here an adapter reads the LoRAs of ``names`` that the host itself could not make sense of.
        """
        ...

    def seam(self, p: Any, content: str, style: str) -> Seam:
        """The seam for the pass that ``p`` is about to sample; LoRAs by the host's names.

        Raises `PairError` if a LoRA is not loaded or does not fit the checkpoint.
        """
        ...

    def before_loading(self, p: Any, seam: Any, layers: Sequence[str]) -> None:
        """The pass is planned with ``seam`` (this host's own), and its weights are not yet loaded.

        Where LoRAs are merged at that moment, an adapter sees to it that the pair is not, in ``layers``.
        """
        ...

    def noise_progress(self, sampler: Any, level: float) -> float:
        """Progress (0 to 1) by the model's own timestep at the level that ``sampler`` passes on."""
        ...


def this_host() -> WebUIHost:
    """The adapter for the WebUI that runs this process; raises `HostError` naming what was probed."""
    from klora.hosts.a1111 import A1111Host
    from klora.hosts.forge import ForgeHost
    from klora.hosts.model_patcher import ModelPatcherHost

    if A1111Host.is_here():
        return A1111Host()
    if ForgeHost.is_here():
        return ForgeHost()
    if ModelPatcherHost.is_here():
        return ModelPatcherHost()
    raise foreign() or HostError(_unknown(ModelPatcherHost.missing()))


def foreign() -> HostError | None:
    """The error for a WebUI that fuses two LoRAs without us, if this is one."""
    if not _has("modules.lora.networks"):
        return None
    return HostError(
        "SD.Next fuses content and style LoRAs by itself: choose the LoRA stack mode 'klora' in its settings "
        "and untick K-LoRA here."
    )


def _unknown(missing: Sequence[str]) -> str:
    """One sentence for a WebUI without an adapter: what it is, or what was probed."""
    if _has("ldm_patched") and "unet.add_weight_wrapper" in missing and "unet.patches" not in missing:
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


def _has(module: str) -> bool:
    if module in sys.modules:
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
