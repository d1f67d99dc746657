"""What the shared WebUI code asks of Forge Neo and reForge."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from klora.errors import HostError
from klora.hosts.forge_family import FamilyHost, Patches
from klora.hosts.forge_family.reading import activate_again
from klora.hosts.forge_family.seam import FamilySeam
from klora.hosts.model_patcher import files
from klora.hosts.model_patcher.denoiser import Merge, ModelPatcherDenoiser

#: Where the hosts keep the function that merges patches into one weight.
_MERGES = {"backend.patcher.lora": "merge_lora_to_weight", "ldm_patched.modules.lora": "calculate_weight"}

#: What a patcher must have; where one is missing, `missing` says so.
NEEDED = ("patches", "patches_uuid", "backup", "patch_weight_to_device", "add_weight_wrapper")


class ModelPatcherHost(FamilyHost):
    """Forge Neo or reForge as this process runs it."""

    name = "Forge Neo or reForge"

    @classmethod
    def is_here(cls) -> bool:
        """Whether the loaded model's denoiser has a patcher of this kind."""
        return not cls.missing()

    @staticmethod
    def missing() -> list[str]:
        """What this kind of host has and this process lacks."""
        from modules import shared

        objects = getattr(getattr(shared, "sd_model", None), "forge_objects", None)
        unet = getattr(objects, "unet", None)
        lacking = [f"unet.{name}" for name in NEEDED if not hasattr(unet, name)]
        if not hasattr(sys.modules.get("networks"), "load_lora_for_models"):
            lacking.append("networks.load_lora_for_models")
        if _merge() is None:
            lacking.append(" or ".join(f"{module}.{name}" for module, name in _MERGES.items()))
        return lacking

    def before_reading(self, p: Any, is_hires: bool) -> None:
        """Note which file puts what on the denoiser, from the first time on."""
        networks = importlib.import_module("networks")
        if not files.is_watched(networks):
            files.watch(networks)
            _unwatch_on_reload(networks)
            activate_again(p, is_hires)

    def seam(self, p: Any, names: Sequence[str]) -> FamilySeam:
        """As the family does; raises `HostError` if there will be a refiner that cannot be followed."""
        _refuse_same_model(p)
        return super().seam(p, names)

    def touched(self, model: Any, path: str) -> Collection[str] | None:
        """What is noted of the file, be it nothing because it changes the text encoder alone."""
        return _noted(model).get(path)

    def is_applied(self, model: Any, path: str) -> bool:
        """Whether it has added anything to the denoiser."""
        return bool(self.touched(model, path))

    def denoiser(self, model: Any, paths: Sequence[str]) -> ModelPatcherDenoiser | None:
        """The denoiser that is about to be loaded."""
        noted, merge = _noted(model), _merge()
        if merge is None or not all(path in noted for path in paths):
            return None
        return ModelPatcherDenoiser(model.forge_objects.unet, [noted[path] for path in paths], merge)

    def predictor(self, sampler: Any) -> Any:
        """The model's, or reForge's ``model_sampling``."""
        inner = sampler.model_wrap_cfg.inner_model
        if not hasattr(inner, "sigmas"):
            return None
        model = inner.inner_model.forge_objects.unet.model
        return getattr(model, "predictor", None) or model.model_sampling


def _merge() -> Merge | None:
    for module, name in _MERGES.items():
        if hasattr(sys.modules.get(module), name):
            function: Merge = getattr(sys.modules[module], name)
            return function
    return None


def _noted(model: Any) -> Mapping[str, Patches]:
    """What each file put on the model's denoiser; another extension may have put its own clone there."""
    for objects in (model.forge_objects, model.forge_objects_after_applying_lora):
        noted = files.noted(getattr(objects, "unet", None))
        if noted is not None:
            return noted
    return {}


def _refuse_same_model(p: Any) -> None:
    from modules import shared

    is_refined = getattr(p, "refiner_checkpoint_info", None) is not None
    if is_refined and getattr(shared.opts, "refiner_fast_sd", False):
        raise HostError(
            "K-LoRA cannot follow a refiner that is read into the model while it samples; switch 'Reload "
            "\"state_dict\" Only' off in the refiner's settings, or untick K-LoRA."
        )


def _unwatch_on_reload(networks: Any) -> None:
    from modules import script_callbacks

    script_callbacks.on_script_unloaded(lambda: files.unwatch(networks))
