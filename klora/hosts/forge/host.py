"""What the shared WebUI code asks of Forge."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from typing import Any

from klora.errors import KloraError, PairError
from klora.hosts.forge.patches import touched, whole
from klora.hosts.forge.seam import ForgeFunctions, ForgeSeam
from klora.hosts.forge_family.reading import read_again
from klora.hosts.webui import library
from klora.hosts.webui.checks import check_base_model, loaded_family
from klora.schedule import noise_progress

#: Where the seam of a job's latest pass hangs on ``p``, because the host tells of a refiner by ``p`` alone.
_SEAM = "klora_forge_seam"


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
        """The host has loaded its LoRAs: let it read what it missed; in the middle of a pass, follow it."""
        seam = getattr(p, _SEAM, None)
        if seam is None or not seam.is_sampling:
            self._read(p, names)
            return
        try:
            self._read(p, names)
            objects = p.sd_model.forge_objects
            objects.unet = seam.follow(objects.unet, _checkpoint(p.sd_model))
        except KloraError as error:
            seam.fail(p.sd_model.forge_objects.unet, error)

    def _read(self, p: Any, names: Collection[str]) -> None:
        def is_understood(path: str) -> bool:
            loaded = p.sd_model.forge_objects_after_applying_lora
            return loaded is not None and bool(touched(loaded.unet.lora_patches, path))

        pair = [found for found in map(library.find, names) if found is not None]
        read_again(p, pair, is_understood)

    def seam(self, p: Any, content: str, style: str) -> ForgeSeam:
        """The seam for two LoRAs, by name; raises `PairError` if one is not loaded or does not fit."""
        model = p.sd_model
        unet = model.forge_objects.unet
        paths = self._loaded(model, unet, content), self._loaded(model, unet, style)
        lora = importlib.import_module("backend.patcher.lora")
        dequantised = importlib.import_module("backend.operations_gguf").dequantize_tensor
        functions = ForgeFunctions(lora.merge_lora_to_weight, dequantised, lora.extra_weight_calculators)
        seam = ForgeSeam(unet, (content, style), paths, functions, _checkpoint(model))
        setattr(p, _SEAM, seam)
        return seam

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
        if float(predictor.sigma_max) <= 1:
            return 1 - level  # a flow model: its sigma is the share of noise, and time itself
        import torch

        return noise_progress(float(predictor.timestep(torch.tensor([level], dtype=torch.float32))[0]))


def _checkpoint(model: Any) -> str | None:
    return getattr(getattr(model, "sd_checkpoint_info", None), "filename", None)
