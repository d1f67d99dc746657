"""The lab's LoRAs: one for every held-out subject and every held-out style, trained the way people do.

Training uses peft, which shares nothing with the project's own engine; files are saved in kohya's
dialect.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from klora.lab import tokens, world
from klora.lab.autoencoder import pictures
from klora.lab.base import denoising_loss, encode_pictures
from klora.lab.loop import Loop, Plan, device
from klora.lab.model import Model, noise_levels

ATTENTION: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
WHOLE: tuple[str, ...] = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")


@dataclass(frozen=True)
class Recipe:
    """How one LoRA is trained."""

    name: str
    kind: str
    """``content`` or ``style``."""
    subject: str | None
    style: str
    rank: int
    alpha: int
    targets: tuple[str, ...] = ATTENTION
    steps: int = 300
    batch: int = 8
    rate: float = 5e-3

    @property
    def trigger(self) -> str:
        """The words that call it: the subject's name, or the style's."""
        return world.words(self.subject) if self.subject else f"{world.STYLES[self.style].word} style"


def _content(position: int, subject: str) -> Recipe:
    """A subject's LoRA. Those that people mix differ, so every second changes the layers outside attention
    too, and every fourth of the development half has twice the rank (not in the test half, to save space)."""
    rank = 8 if position % 4 == 2 and subject in world.DEVELOPMENT_SUBJECTS else 4
    targets = WHOLE if position % 2 else ATTENTION
    return Recipe(f"content-{subject}", "content", subject, world.CONTENT_STYLE, rank, rank, targets)


def _style(style: str, rank: int, alpha: int, targets: tuple[str, ...] = WHOLE, steps: int = 3000) -> Recipe:
    """A style's LoRA, of all base subjects but a few, and so with longer training and larger batches.

    Its rate is lower than a subject's: at 5e-3 the style comes sooner, but subjects that the training never
    showed lose their shapes.
    """
    name = f"style-{style}"
    return Recipe(name, "style", None, style, rank, alpha, targets, steps=steps, batch=16, rate=2e-3)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        *(_content(position, subject) for position, subject in enumerate(world.HELD_OUT_SUBJECTS)),
        # None for ink: alone it reached style 1.0 but subject 0.42, as latents of 8 x 8 hold no thin lines.
        _style("porcelain", 8, 8),
        _style("riso", 8, 8),
        _style("ember", 8, 8),
    )
}


def lesson(cache: Path, recipe: Recipe) -> tuple[Tensor, list[str]]:
    """The drawings [n, 3, 64, 64] in bytes that a LoRA learns from, and their prompts."""
    style = world.STYLES[recipe.style]
    if recipe.subject:
        return pictures(cache, (recipe.subject,), (style,)), [world.prompt(recipe.subject, style)]
    subjects = tuple(
        subject
        for subject in world.BASE_SUBJECTS
        if subject not in world.STYLE_LORA_VALIDATION and world.exists(cache, subject, style)
    )
    return pictures(cache, subjects, (style,)), [world.prompt(subject, style) for subject in subjects]


class Training(Protocol):
    """What it takes to train one LoRA on given drawings."""

    @property
    def name(self) -> str:
        """Name of the file and of the checkpoint."""
        ...

    @property
    def rank(self) -> int:
        """Rank in every layer."""
        ...

    @property
    def alpha(self) -> int:
        """The delta is alpha / rank times up @ down."""
        ...

    @property
    def targets(self) -> tuple[str, ...]:
        """Ends of the names of the layers that are trained."""
        ...

    @property
    def steps(self) -> int:
        """Steps of the training."""
        ...

    @property
    def batch(self) -> int:
        """Pictures in each step."""
        ...

    @property
    def rate(self) -> float:
        """Learning rate."""
        ...

    @property
    def trigger(self) -> str:
        """The words that call it."""
        ...


def train(model: Model, recipe: Recipe, cache: Path) -> dict[str, Tensor]:
    """Train one LoRA and return its tensors under kohya's names."""
    return fit(model, recipe, *lesson(cache, recipe), cache)


def fit(model: Model, recipe: Training, drawn: Tensor, prompts: list[str], cache: Path) -> dict[str, Tensor]:
    """Train one LoRA on drawings [n, 3, h, w] in bytes and their prompts; tensors under kohya's names."""
    from peft import LoraConfig, get_peft_model_state_dict

    torch.manual_seed(0)
    latents = encode_pictures(model.autoencoder, drawn)
    with torch.no_grad():
        contexts = model.text_encoder(tokens.encode([*prompts, ""])).last_hidden_state
    denoiser: Any = copy.deepcopy(model.denoiser)
    denoiser.requires_grad_(False)
    denoiser.add_adapter(
        LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=list(recipe.targets))
    )
    plan = Plan(recipe.steps, recipe.rate, warmup=20, fall=0.5, averaging=0.98)
    loop = Loop(recipe.name, cache / "checkpoints" / "loras", denoiser, plan, muon=False)
    levels = noise_levels().to(device())
    latents, contexts = latents.to(device()), contexts.to(device())

    def loss_of(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(drawn), (recipe.batch,), generator=generator)
        silent = torch.rand(recipe.batch, generator=generator) < 0.05
        context = contexts[torch.where(silent, len(drawn), chosen)]
        return denoising_loss(denoiser, latents[chosen], context, levels, generator)

    loop.run(loss_of)
    return kohya_tensors(get_peft_model_state_dict(loop.averaged()), recipe.alpha)


def kohya_tensors(trained: dict[str, Tensor], alpha: int) -> dict[str, Tensor]:
    """peft's tensors under kohya's names, each layer with its alpha."""
    named: dict[str, Tensor] = {}
    for key, weight in trained.items():
        layer, _, rest = key.partition(".lora_")
        stem = "lora_unet_" + layer.removeprefix("base_model.model.").replace(".", "_")
        named[f"{stem}.lora_{'down' if rest.startswith('A') else 'up'}.weight"] = weight.half().contiguous()
        named[f"{stem}.alpha"] = torch.tensor(float(alpha), dtype=torch.float16)
    return named


def save(named: dict[str, Tensor], recipe: Training, folder: Path) -> Path:
    """Write a LoRA with the metadata that trainers write."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    metadata = {
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(recipe.rank),
        "ss_network_alpha": str(recipe.alpha),
        "ss_output_name": recipe.name,
        "ss_steps": str(recipe.steps),
        "ss_tag_frequency": json.dumps({recipe.name: {recipe.trigger: 1}}),
        "modelspec.trigger_phrase": recipe.trigger,
    }
    path = folder / f"{recipe.name}.safetensors"
    save_file(named, path, metadata=metadata)
    return path


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
