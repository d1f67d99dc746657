"""Training of world 2's LoRAs: what each learns from, and where it is kept."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from klora.lab import loras, world
from klora.lab.icons import Picture
from klora.lab.model import Model
from klora.lab.world2 import individuals
from klora.lab.world2.drawing import draw_kind, stacked
from klora.lab.world2.individuals import ALL_INDIVIDUALS, Individual
from klora.lab.world2.recipes import INDIVIDUAL, LESSON_STYLES, STYLE, STYLE_LESSONS, Recipe
from klora.lab.world2.styles import STYLES

BY_NAME: dict[str, Individual] = {one.name: one for one in ALL_INDIVIDUALS}


def true_picture(cache: Path, recipe: Recipe, style: str) -> Picture:
    """The true drawing of a content LoRA's subject in a style."""
    if recipe.kind == INDIVIDUAL:
        one = BY_NAME[recipe.subject]
        return individuals.draw(cache, one.kind, one.wears, STYLES[style])
    return draw_kind(cache, recipe.subject, STYLES[style])


def lesson(cache: Path, recipe: Recipe) -> tuple[Tensor, list[str]]:
    """The drawings [n, 3, 128, 128] in bytes that a LoRA learns from, and their prompts."""
    count = recipe.build.drawings
    if recipe.kind == STYLE:
        shown = STYLE_LESSONS[:count]
        drawn = [draw_kind(cache, kind, STYLES[recipe.subject]) for kind in shown]
        return stacked(drawn), [f"{world.words(kind)}, {recipe.trigger}" for kind in shown]
    styles = LESSON_STYLES[:count]
    drawn = [true_picture(cache, recipe, style) for style in styles]
    return stacked(drawn), [f"{recipe.trigger}, {STYLES[style].word} style" for style in styles]


def steps_of(path: Path) -> int:
    """For how many steps the LoRA of a file was trained; 0 where there is no file."""
    from safetensors import safe_open

    if not path.exists():
        return 0
    with safe_open(path, "pt") as stored:
        return int(stored.metadata()["ss_steps"])


def longer(recipe: Recipe, factor: float) -> Recipe:
    """The same recipe with so many times the steps."""
    return replace(recipe, build=replace(recipe.build, steps=round(factor * recipe.steps)))


def train(model: Model, recipe: Recipe, cache: Path, folder: Path) -> Path:
    """Train one LoRA, or go on, unless its file has these steps; returns the file."""
    path = folder / f"{recipe.name}.safetensors"
    if steps_of(path) < recipe.steps:
        named = loras.fit(model, recipe, *lesson(cache, recipe), cache)
        loras.save(named, recipe, folder)
    return path


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
