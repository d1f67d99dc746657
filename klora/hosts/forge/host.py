"""What the shared WebUI code asks of Forge."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from klora.hosts.forge.denoiser import ForgeDenoiser
from klora.hosts.forge.tables import by_parameter, of_files, touches, whole
from klora.hosts.forge_family import FamilyHost


class ForgeHost(FamilyHost):
    """Forge as this process runs it."""

    name = "Forge"

    @staticmethod
    def is_here() -> bool:
        """Whether the loaded model's denoiser carries LoRA patches and a loader that merges them."""
        from modules import shared

        objects = getattr(getattr(shared, "sd_model", None), "forge_objects", None)
        unet = getattr(objects, "unet", None)
        return hasattr(unet, "lora_patches") and hasattr(getattr(unet, "model", None), "lora_loader")

    def touched(self, model: Any, path: str) -> Collection[str] | None:
        """What the host's own table has of the file."""
        loaded = model.forge_objects_after_applying_lora
        table = {} if loaded is None else loaded.unet.lora_patches
        return by_parameter(table, of_files(table, path)) or None

    def is_applied(self, model: Any, path: str) -> bool:
        """Whether the denoiser's table has it, which may be one that K-LoRA left from the pass before."""
        return touches(whole(model.forge_objects.unet.lora_patches), path)

    def denoiser(self, model: Any, paths: Sequence[str]) -> ForgeDenoiser:
        """The denoiser that is about to be loaded."""
        return ForgeDenoiser(model.forge_objects.unet, paths)

    def predictor(self, sampler: Any) -> Any:
        """Only k-diffusion's samplers have one."""
        return getattr(sampler.model_wrap_cfg.inner_model, "predictor", None)
