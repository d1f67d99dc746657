"""The few questions that a WebUI answers to the shared code, and which WebUI this is."""

from __future__ import annotations

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

    if A1111Host.is_here():
        return A1111Host()
    if ForgeHost.is_here():
        return ForgeHost()
    raise HostError(
        "K-LoRA does not know this WebUI: its Lora extension has no per-layer merge (network_apply_weights "
        "with originals and loaded_networks), and the loaded model has no denoiser with patches and a loader "
        "(forge_objects with lora_patches and lora_loader). Update K-LoRA or untick it."
    )
