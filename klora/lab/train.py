"""Rebuilding everything from the icon sets, stage by stage; each stage goes on where it stopped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from klora.lab import autoencoder, base, checkpoint, gates, icons, judges, loras, world
from klora.lab.loop import Loop, Plan
from klora.lab.model import Model, build_autoencoder, build_denoiser, build_text_encoder

AUTOENCODER_PLAN = Plan(steps=3000, rate=4e-3, warmup=50, fall=0.4, averaging=0.998)
DECODER_PLAN = Plan(steps=1800, rate=2e-3, warmup=20, fall=0.8, averaging=0.995, seed=3)
BASE_PLAN = Plan(steps=4200, rate=3e-3, warmup=100, fall=0.4, averaging=0.998)


@dataclass(frozen=True)
class Job:
    """Where a training reads and writes, and for how long each stage may run."""

    cache: Path
    out: Path
    minutes: float = math.inf
    lora_names: tuple[str, ...] = tuple(loras.RECIPES)


def _averages(cache: Path, name: str) -> dict[str, torch.Tensor]:
    """The averaged weights of a training's checkpoint."""
    kept: dict[str, torch.Tensor] = torch.load(cache / "checkpoints" / f"{name}.pt", weights_only=True)["average"]
    return kept


def encoder_of(cache: Path) -> nn.Module:
    """The autoencoder as its first training left it, with the latents' statistics folded into its weights."""
    network = build_autoencoder()
    network.load_state_dict(_averages(cache, "autoencoder"))
    network.eval()
    base.normalise_autoencoder(network, autoencoder.pictures(cache, world.BASE_SUBJECTS, world.BASE_STYLES))
    return network


def _with_refined_decoder(cache: Path, network: nn.Module) -> nn.Module:
    """The same encoder and latents with the refined decoder, where that has been trained."""
    if not (cache / "checkpoints" / "decoder.pt").exists():
        return network
    raw = build_autoencoder()
    raw.load_state_dict(_averages(cache, "decoder"))
    base.normalise_autoencoder(
        raw.eval(), autoencoder.pictures(cache, world.BASE_SUBJECTS, world.BASE_STYLES)
    )
    return raw


def trained_model(cache: Path) -> Model:
    """The trained networks from the cache's checkpoints, with the full vocabulary."""
    words = base.Words.of(base.base_prompts())
    both = nn.ModuleDict({"denoiser": build_denoiser(), "text_encoder": build_text_encoder(len(words.numbers))})
    both.load_state_dict(_averages(cache, "base"))
    text = base.full_text_encoder(both["text_encoder"], words)
    return Model(_with_refined_decoder(cache, encoder_of(cache)), both["denoiser"], text).eval()


def train_autoencoder(job: Job) -> Loop:
    """Stage ``vae``: the autoencoder, then its decoder once more on what the lab draws."""
    loop = autoencoder.train(job.cache, AUTOENCODER_PLAN, job.minutes)
    if loop.finished:
        styles = tuple(style for style in world.STYLES.values() if style.name != "neon")
        drawn = autoencoder.pictures(job.cache, world.BASE_SUBJECTS, styles)
        autoencoder.refine(job.cache, drawn, DECODER_PLAN, job.minutes)
    return loop


def train_base(job: Job) -> None:
    """Stage ``base``: denoiser and text encoder; the checkpoint is written to the output folder."""
    latents = base.base_latents(job.cache, encoder_of(job.cache))
    base.train(job.cache, latents, BASE_PLAN, job.minutes)
    checkpoint.export(trained_model(job.cache), job.out)


def train_judges(job: Job) -> None:
    """Stage ``judges``: both classifiers and their accuracy."""
    for name, accuracy in judges.train(job.cache).items():
        print(f"{name}: {accuracy:.3f}")
    judges.Judges.from_cache(job.cache).save(job.out / "judges.safetensors")


def train_loras(job: Job) -> None:
    """Stage ``loras``: every LoRA on the checkpoint of the output folder; finished files are kept."""
    model = checkpoint.load(job.out / f"{checkpoint.NAME}.safetensors")
    for name in job.lora_names:
        if not (job.out / "loras" / f"{name}.safetensors").exists():
            recipe = loras.RECIPES[name]
            loras.save(loras.train(model, recipe, job.cache), recipe, job.out / "loras")


def measure_gates(job: Job) -> None:
    """Stage ``gates``: measure and write every gate."""
    model = checkpoint.load(job.out / f"{checkpoint.NAME}.safetensors")
    panel = judges.Judges.load(job.out / "judges.safetensors")
    found = gates.autoencoder_gates(model, job.cache) + gates.base_gates(model, panel)
    for name, recipe in loras.RECIPES.items():
        path = job.out / "loras" / f"{name}.safetensors"
        if path.exists():
            found += gates.lora_gates(model, panel, recipe, path)
    gates.write(found, job.out)
    print(gates.table(found))


STAGES: dict[str, Callable[[Job], object]] = {
    "icons": lambda job: icons.fetch(job.cache),
    "vae": train_autoencoder,
    "base": train_base,
    "judges": train_judges,
    "loras": train_loras,
    "gates": measure_gates,
}


def run(job: Job, stages: tuple[str, ...] = tuple(STAGES)) -> None:
    """Run stages in their order."""
    job.out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        STAGES[stage](job)
