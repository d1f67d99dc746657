"""What the shared WebUI code asks of Forge."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from typing import Any

from klora.errors import HostError, PairError
from klora.hosts.forge.patches import touched, whole
from klora.hosts.forge.seam import ForgeSeam
from klora.hosts.webui import library
from klora.hosts.webui.checks import check_base_model, loaded_family
from klora.schedule import noise_progress


class ForgeHost:
    """Forge as this process runs it."""

    name = "Forge"

    @staticmethod
    def is_here() -> bool:
        """Whether the loaded model's denoiser carries LoRA patches and a loader that merges them."""
        from modules import shared

        objects = getattr(getattr(shared, "sd_model", None), "forge_objects", None)
        unet = getattr(objects, "unet", None)
        return hasattr(unet, "lora_patches") and hasattr(getattr(unet, "model", None), "lora_loader")

    def after_activation(self, p: Any, names: Collection[str]) -> None:
        """Nothing: Forge reads every dialect of the pair by itself, or says on the console that it cannot."""

    def seam(self, p: Any, content: str, style: str) -> ForgeSeam:
        """The seam for two LoRAs, by name; raises `PairError` if one is not loaded or does not fit."""
        model = p.sd_model
        unet = model.forge_objects.unet
        if unet.has_online_lora():
            raise HostError(
                "K-LoRA fuses LoRAs that are merged, and this checkpoint applies them on the fly; choose a "
                "'Diffusion in Low Bits' without '(fp16 LoRA)', or untick K-LoRA."
            )
        if getattr(p, "refiner_checkpoint_info", None) is not None:
            raise HostError(
                "K-LoRA cannot follow a refiner on Forge yet: it would get both LoRAs added in the middle of "
                "the picture; switch the refiner off, or untick K-LoRA."
            )
        paths = self._loaded(model, unet, content), self._loaded(model, unet, style)
        merge = importlib.import_module("backend.patcher.lora").merge_lora_to_weight
        checkpoint = getattr(getattr(model, "sd_checkpoint_info", None), "filename", None)
        return ForgeSeam(unet, (content, style), paths, merge, checkpoint)

    def _loaded(self, model: Any, unet: Any, name: str) -> str:
        known = library.find(name)
        if known is None:
            raise PairError(f"LoRA {name} was not found; press refresh in the Lora tab.")
        check_base_model(model, known.path, name)
        if not touched(whole(unet.lora_patches), known.path):
            raise PairError(
                f"LoRA {name} changes no layer of the loaded checkpoint ({loaded_family(model)}); "
                "pick another LoRA, or look on the console for why the WebUI could not load it."
            )
        return known.path

    def before_loading(self, p: Any, seam: ForgeSeam, layers: Sequence[str]) -> None:
        """Forge merges when it loads the denoiser for the pass: show it one without the contested patches."""
        p.sd_model.forge_objects.unet = seam.without(layers)

    def noise_progress(self, sampler: Any, level: float) -> float:
        """Progress from the level that ``sampler`` gives the denoiser: a sigma, or the timestep itself."""
        predictor = getattr(sampler.model_wrap_cfg.inner_model, "predictor", None)
        if predictor is None:
            return noise_progress(level)
        import torch

        return noise_progress(float(predictor.timestep(torch.tensor([level], dtype=torch.float32))[0]))
