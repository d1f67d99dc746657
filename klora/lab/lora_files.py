"""The files of the lab's LoRAs, in kohya's dialect: written, merged into a denoiser, and what they say."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from klora.files.conversion import save_tensors
from klora.files.writing import written_whole
from klora.lab.recipes import Recipe


def save(named: dict[str, Tensor], recipe: Recipe, folder: Path) -> Path:
    """Write a LoRA, at once, with the metadata that trainers write."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(recipe.build.rank),
        "ss_network_alpha": str(recipe.build.alpha),
        "ss_output_name": recipe.name,
        "ss_steps": str(recipe.build.steps),
        "ss_tag_frequency": json.dumps({recipe.name: {recipe.trigger: 1}}),
        "modelspec.trigger_phrase": recipe.trigger,
    }
    path = folder / f"{recipe.name}.safetensors"
    with written_whole(path) as draft:
        save_tensors(named, draft, metadata)
    return path


def steps_of(path: Path) -> int:
    """For how many steps the LoRA of a file was trained; 0 where there is no file."""
    from safetensors import safe_open

    if not path.exists():
        return 0
    with safe_open(path, "pt") as stored:
        return int(stored.metadata()["ss_steps"])


def strength(path: Path) -> float:
    """Norm of a LoRA's delta over all its layers: how strong it is beside others."""
    from safetensors.torch import load_file

    stored = load_file(path)
    squared = 0.0
    for stem in {key.split(".", 1)[0] for key in stored}:
        up, down = (stored[f"{stem}.lora_{way}.weight"].float() for way in ("up", "down"))
        scale = float(stored[f"{stem}.alpha"]) / len(down)
        squared += float(torch.linalg.matrix_norm(scale * (up.flatten(1) @ down.flatten(1)))) ** 2
    return math.sqrt(squared)


def layers(denoiser: nn.Module) -> dict[str, nn.Module]:
    """The denoiser's layers by kohya's names."""
    return {"lora_unet_" + name.replace(".", "_"): module for name, module in denoiser.named_modules()}


@contextmanager
def merged(denoiser: nn.Module, path: Path, strength: float = 1.0) -> Iterator[None]:
    """The denoiser with one LoRA file added to its weights; the weights come back as they were."""
    from safetensors.torch import load_file

    stored, known = load_file(path), layers(denoiser)
    kept: dict[str, Tensor] = {}
    try:
        for stem in sorted({key.split(".", 1)[0] for key in stored}):
            weight: Tensor = known[stem].weight  # type: ignore[assignment]
            up, down = (stored[f"{stem}.lora_{way}.weight"].float() for way in ("up", "down"))
            scale = strength * float(stored[f"{stem}.alpha"]) / len(down)
            kept[stem] = weight.detach().clone()
            with torch.no_grad():
                weight += scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        yield
    finally:
        for stem, before in kept.items():
            with torch.no_grad():
                known[stem].weight.copy_(before)  # type: ignore[operator]
