"""Training of the LoRAs, the way people do it: what each learns from, and for how long.

Training uses peft, which shares nothing with the project's own engine.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from klora.lab import tokens
from klora.lab.lora_files import save, steps_of
from klora.lab.model import Model, noise_levels
from klora.lab.recipes import LESSON_STYLES, STYLE, STYLE_LESSONS, Recipe
from klora.lab.training.base import denoising_loss, encode_pictures
from klora.lab.training.loop import Loop, Plan, device
from klora.lab.truth import true_picture
from klora.lab.world.drawing import draw_kind, stacked
from klora.lab.world.kinds import words
from klora.lab.world.styles import STYLES


def lesson(cache: Path, recipe: Recipe) -> tuple[Tensor, list[str]]:
    """The drawings [n, 3, 128, 128] in bytes that a LoRA learns from, and their prompts."""
    count = recipe.build.drawings
    if recipe.kind == STYLE:
        shown = STYLE_LESSONS[:count]
        drawn = [draw_kind(cache, kind, STYLES[recipe.subject]) for kind in shown]
        return stacked(drawn), [f"{words(kind)}, {recipe.trigger}" for kind in shown]
    styles = LESSON_STYLES[:count]
    drawn = [true_picture(cache, recipe, style) for style in styles]
    return stacked(drawn), [f"{recipe.trigger}, {STYLES[style].word} style" for style in styles]


def longer(recipe: Recipe, factor: float) -> Recipe:
    """The same recipe with so many times the steps."""
    return replace(recipe, build=replace(recipe.build, steps=max(1, round(factor * recipe.build.steps))))


def train(model: Model, recipe: Recipe, cache: Path, folder: Path) -> Path:
    """Train one LoRA, or go on, unless its file has these steps; returns the file."""
    path = folder / f"{recipe.name}.safetensors"
    if steps_of(path) < recipe.build.steps:
        named = fit(model, recipe, *lesson(cache, recipe), cache)
        save(named, recipe, folder)
    return path


def fit(model: Model, recipe: Recipe, drawn: Tensor, prompts: list[str], cache: Path) -> dict[str, Tensor]:
    """Train one LoRA on drawings [n, 3, h, w] in bytes and their prompts; tensors under kohya's names."""
    from peft import LoraConfig, get_peft_model_state_dict

    torch.manual_seed(0)
    build = recipe.build
    latents = encode_pictures(model.autoencoder, drawn)
    with torch.no_grad():
        contexts = model.text_encoder(tokens.encode([*prompts, ""])).last_hidden_state
    denoiser: Any = copy.deepcopy(model.denoiser)
    denoiser.requires_grad_(False)
    form = LoraConfig(
        r=build.rank,
        lora_alpha=build.alpha,
        target_modules=list(build.targets),
        lora_dropout=build.dropout,
    )
    denoiser.add_adapter(form)
    plan = Plan(build.steps, build.rate, warmup=20, fall=0.5, averaging=0.98)
    loop = Loop(recipe.name, cache / "checkpoints" / "loras", denoiser, plan, muon=False)
    levels = noise_levels().to(device())
    latents, contexts = latents.to(device()), contexts.to(device())

    def loss_of(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(drawn), (recipe.batch,), generator=generator)
        silent = torch.rand(recipe.batch, generator=generator) < 0.05
        context = contexts[torch.where(silent, len(drawn), chosen)]
        return denoising_loss(denoiser, latents[chosen], context, levels, generator)

    loop.run(loss_of)
    return kohya_tensors(get_peft_model_state_dict(loop.averaged()), build.alpha)


def kohya_tensors(trained: dict[str, Tensor], alpha: int) -> dict[str, Tensor]:
    """peft's tensors under kohya's names, each layer with its alpha."""
    named: dict[str, Tensor] = {}
    for key, weight in trained.items():
        layer, _, rest = key.partition(".lora_")
        stem = "lora_unet_" + layer.removeprefix("base_model.model.").replace(".", "_")
        named[f"{stem}.lora_{'down' if rest.startswith('A') else 'up'}.weight"] = weight.half().contiguous()
        named[f"{stem}.alpha"] = torch.tensor(float(alpha), dtype=torch.float16)
    return named
