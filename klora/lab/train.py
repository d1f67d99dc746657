"""Rebuilding everything from the icon sets, stage by stage; each stage goes on where it stopped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from klora.lab import autoencoder, base, checkpoint, gates, icons, judges, loras, text, world
from klora.lab.loop import Loop, Plan
from klora.lab.model import Model, build_autoencoder, build_denoiser
from klora.lab.words import Words, base_prompts

AUTOENCODER_PLAN = Plan(steps=6000, rate=4e-3, warmup=50, fall=0.4, averaging=0.998)
DECODER_PLAN = Plan(steps=2000, rate=2e-3, warmup=20, fall=0.8, averaging=0.995, seed=3)
TEXT_PLAN = Plan(steps=700, rate=3e-3, warmup=30, fall=0.6, averaging=0.98, seed=4)
BASE_PLAN = Plan(steps=10_000, rate=3e-3, warmup=100, fall=0.5, averaging=0.998)
IMPROVE_PLAN = Plan(steps=2600, rate=2e-3, warmup=100, fall=0.6, averaging=0.998, seed=5)


@dataclass(frozen=True)
class Job:
    """Where a training reads and writes, and for how long each stage may run."""

    cache: Path
    out: Path
    minutes: float = math.inf
    base_steps: int | None = None
    """Steps of the base training, or of improving it, where not those of its plan."""
    lora_names: tuple[str, ...] = tuple(loras.RECIPES)

    def planned(self, plan: Plan) -> Plan:
        """A plan of the base training with the steps that were asked for."""
        return plan if self.base_steps is None else replace(plan, steps=self.base_steps)


def _folded(cache: Path, name: str) -> nn.Module:
    """An autoencoder of the cache with the latents' statistics folded into its weights."""
    network = build_autoencoder()
    network.load_state_dict(autoencoder.kept_average(cache, name))
    base.normalise_autoencoder(network.eval(), base.base_pictures(cache))
    return network


def encoder_of(cache: Path) -> nn.Module:
    """The autoencoder as its first training left it: its latents are those that the denoiser learns."""
    return _folded(cache, "autoencoder")


def decoder_of(cache: Path) -> nn.Module:
    """The same encoder with the refined decoder, where that has been trained."""
    refined = (cache / "checkpoints" / "decoder.pt").exists()
    return _folded(cache, "decoder" if refined else "autoencoder")


def reader_of(cache: Path) -> text.Reader:
    """The trained text encoder with its teaching layers."""
    words = Words.of(base_prompts())
    reader = text.Reader(len(words.numbers), len(world.BASE_SUBJECTS), len(world.BASE_STYLES))
    reader.load_state_dict(autoencoder.kept_average(cache, "text"))
    return reader.eval()


def trained_model(cache: Path) -> Model:
    """The trained networks from the cache's checkpoints, with the full vocabulary."""
    denoiser = build_denoiser()
    denoiser.load_state_dict(autoencoder.kept_average(cache, "base"))
    full = text.full_vocabulary(reader_of(cache).text_encoder, Words.of(base_prompts()))
    return Model(decoder_of(cache), denoiser, full).eval()


def train_autoencoder(job: Job) -> Loop:
    """Stage ``vae``: the autoencoder, then its decoder once more on what the lab draws."""
    loop = autoencoder.train(job.cache, AUTOENCODER_PLAN, job.minutes)
    if loop.finished:
        drawn = autoencoder.pictures(job.cache, world.BASE_SUBJECTS, tuple(world.STYLES.values()))
        autoencoder.refine(job.cache, drawn, DECODER_PLAN, job.minutes)
    return loop


def train_text(job: Job) -> None:
    """Stage ``text``: the text encoder."""
    text.train(job.cache, base.base_latents(job.cache, encoder_of(job.cache)), TEXT_PLAN, job.minutes)


def train_base(job: Job) -> None:
    """Stage ``base``: the denoiser; the checkpoint is written to the output folder."""
    latents = base.base_latents(job.cache, encoder_of(job.cache))
    contexts = text.contexts(reader_of(job.cache).text_encoder, base_prompts(), Words.of(base_prompts()))
    base.train(job.cache, latents, contexts, job.planned(BASE_PLAN), job.minutes)
    checkpoint.export(trained_model(job.cache), job.out)


def improve_base(job: Job) -> None:
    """Stage ``improve``: go on training the denoiser of a finished checkpoint, whose latents and words stay.

    For a machine whose cache has no checkpoint of the base training: only the optimiser's memory is lost.
    """
    path = job.out / f"{checkpoint.NAME}.safetensors"
    model = checkpoint.load(path)
    latents = base.encode_pictures(model.autoencoder, base.base_pictures(job.cache))
    latents = latents.reshape(len(world.BASE_SUBJECTS), len(world.BASE_STYLES), 4, 8, 8)
    contexts = text.contexts(model.text_encoder, base_prompts())
    start = model.denoiser.train().requires_grad_(True)
    loop = base.train(job.cache, latents, contexts, job.planned(IMPROVE_PLAN), job.minutes, start)
    model.denoiser = loop.averaged()
    checkpoint.export(model, job.out)


def train_judges(job: Job) -> None:
    """Stage ``judges``: both classifiers and their accuracy."""
    autoencoder = checkpoint.load(job.out / f"{checkpoint.NAME}.safetensors").autoencoder
    for name, accuracy in judges.train(job.cache, autoencoder).items():
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
    found = gates.autoencoder_gates(model, job.cache)
    found += gates.judge_gates(panel, model, job.cache) + gates.base_gates(model, panel)
    for name, recipe in loras.RECIPES.items():
        path = job.out / "loras" / f"{name}.safetensors"
        if path.exists():
            found += gates.lora_gates(model, panel, recipe, path)
    gates.write(found, job.out)
    print(gates.table(found))


STAGES: dict[str, Callable[[Job], object]] = {
    "icons": lambda job: icons.fetch(job.cache),
    "vae": train_autoencoder,
    "text": train_text,
    "base": train_base,
    "judges": train_judges,
    "loras": train_loras,
    "gates": measure_gates,
}


EXTRA_STAGES: dict[str, Callable[[Job], object]] = {"improve": improve_base}
"""Stages that run only when asked for."""


def run(job: Job, stages: tuple[str, ...] = tuple(STAGES)) -> None:
    """Run stages in their order."""
    job.out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        {**STAGES, **EXTRA_STAGES}[stage](job)
