"""What the shared WebUI code asks of Forge Neo and reForge."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from klora.errors import HostError, KloraError, PairError
from klora.hosts.forge_family.reading import read_again
from klora.hosts.model_patcher import files
from klora.hosts.model_patcher.seam import Merge, ModelPatcherSeam
from klora.hosts.webui import library
from klora.hosts.webui.checks import check_base_model, loaded_family
from klora.schedule import noise_progress

#: Where the hosts keep the function that merges patches into one weight.
_MERGES = {"backend.patcher.lora": "merge_lora_to_weight", "ldm_patched.modules.lora": "calculate_weight"}

#: What a patcher must have; where one is missing, `missing` says so.
NEEDED = ("patches", "patches_uuid", "backup", "patch_weight_to_device", "add_weight_wrapper")

#: Where the seam of a job's latest pass hangs on ``p``, because the host tells of a refiner by ``p`` alone.
_SEAM = "klora_model_patcher_seam"


class ModelPatcherHost:
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

    def after_activation(self, p: Any, names: Collection[str]) -> None:
        """The host has loaded its LoRAs: note which file did what; in the middle of a pass, follow it."""
        seam = getattr(p, _SEAM, None)
        if seam is None or not seam.is_sampling:
            self._read(p, names)
            return
        try:
            self._read(p, names)
            objects = p.sd_model.forge_objects
            noted = files.noted(objects.unet) or {}
            if all(path in noted for path in seam.paths):
                owns = (noted[seam.paths[0]], noted[seam.paths[1]])
                objects.unet = seam.follow(objects.unet, owns, _checkpoint(p.sd_model))
        except KloraError as error:
            seam.fail(p.sd_model.forge_objects.unet, error)

    @staticmethod
    def _read(p: Any, names: Collection[str]) -> None:
        networks = importlib.import_module("networks")
        if not files.is_watched(networks):
            files.watch(networks)
            _unwatch_on_reload(networks)
            _load_again(p)
        pair = [found for found in map(library.find, names) if found is not None]
        read_again(p, pair, lambda path: path in _noted(p.sd_model))

    def seam(self, p: Any, content: str, style: str) -> ModelPatcherSeam:
        """The seam for two LoRAs, by name; raises `PairError` if one is not loaded or does not fit."""
        _refuse_same_model(p)
        model = p.sd_model
        found = (self._loaded(model, content), self._loaded(model, style))
        paths, owns = (found[0][0], found[1][0]), (found[0][1], found[1][1])
        merge = _merge()
        assert merge is not None  # `is_here` asked
        unet = model.forge_objects.unet
        seam = ModelPatcherSeam(unet, (content, style), paths, owns, merge, _checkpoint(model))
        setattr(p, _SEAM, seam)
        return seam

    @staticmethod
    def _loaded(model: Any, name: str) -> tuple[str, files.Own]:
        known = library.find(name)
        if known is None:
            raise PairError(f"LoRA {name} was not found; press refresh in the Lora tab.")
        check_base_model(model, known.path, name)
        own = _noted(model).get(known.path)
        if not own:
            raise PairError(
                f"LoRA {name} changes no layer of the loaded checkpoint ({loaded_family(model)}); "
                "pick another LoRA, or look on the console for why the WebUI could not load it."
            )
        return known.path, own

    def before_loading(self, p: Any, seam: Any, layers: Sequence[str]) -> None:
        """The host merges when it loads the denoiser for the pass: show it one without contested patches."""
        p.sd_model.forge_objects.unet = seam.without(layers)

    def noise_progress(self, sampler: Any, level: float) -> float:
        """Progress from the level that ``sampler`` gives the denoiser: a sigma, or the timestep itself."""
        inner = sampler.model_wrap_cfg.inner_model
        if not hasattr(inner, "sigmas"):
            return noise_progress(level)
        import torch

        model = inner.inner_model.forge_objects.unet.model
        predictor: Any = getattr(model, "predictor", None) or model.model_sampling
        if float(predictor.sigma_max) <= 1:
            return 1 - level  # a flow model: its sigma is the share of noise, and time itself
        return noise_progress(float(predictor.timestep(torch.tensor([level], dtype=torch.float32))[0]))


def _merge() -> Merge | None:
    for module, name in _MERGES.items():
        if hasattr(sys.modules.get(module), name):
            function: Merge = getattr(sys.modules[module], name)
            return function
    return None


def _noted(model: Any) -> Mapping[str, files.Own]:
    """What each file put on the model's denoiser; another extension may have put its own clone there."""
    for objects in (model.forge_objects, model.forge_objects_after_applying_lora):
        noted = files.noted(getattr(objects, "unet", None))
        if noted is not None:
            return noted
    return {}


def _checkpoint(model: Any) -> str | None:
    return getattr(getattr(model, "sd_checkpoint_info", None), "filename", None)


def _refuse_same_model(p: Any) -> None:
    from modules import shared

    is_refined = getattr(p, "refiner_checkpoint_info", None) is not None
    if is_refined and getattr(shared.opts, "refiner_fast_sd", False):
        raise HostError(
            "K-LoRA cannot follow a refiner that is read into the model while it samples; switch 'Reload "
            "\"state_dict\" Only' off in the refiner's settings, or untick K-LoRA."
        )


def _load_again(p: Any) -> None:
    """Let the host load the LoRAs of the batch once more, past its cache of unchanged tags."""
    from modules import extra_networks

    p.sd_model.current_lora_hash = ""
    tags = p.extra_network_data["lora"]
    extra_networks.extra_network_registry["lora"].activate(p, tags)


def _unwatch_on_reload(networks: Any) -> None:
    from modules import script_callbacks

    script_callbacks.on_script_unloaded(lambda: files.unwatch(networks))
