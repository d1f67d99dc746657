"""Rebuilding the lab from the icon sets, stage by stage; each stage goes on where it stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from klora.lab import checkpoint, truth
from klora.lab.judges import NAME as JUDGES
from klora.lab.judges import judges_of
from klora.lab.keeping import kept
from klora.lab.lora_files import steps_of
from klora.lab.model import Model, build_autoencoder, build_denoiser
from klora.lab.recipes import MET, RECIPES, STYLE, Recipe, recipe_of
from klora.lab.sharing import shared
from klora.lab.training import autoencoder, base, gates, judges, loras, text
from klora.lab.training.loop import Plan
from klora.lab.world import icons
from klora.lab.world.drawing import kinds_in_style
from klora.lab.world.kinds import KINDS
from klora.lab.world.prompts import base_prompts, prompts_with_unknown_words, trigger_prompts
from klora.lab.world.styles import BASE_STYLES, CONTENT_STYLE, STYLES

TEXT_PLAN = Plan(steps=1500, rate=3e-3, warmup=30, fall=0.6, averaging=0.98, seed=4)
BASE_PLAN = Plan(steps=17_300, rate=3e-3, warmup=100, fall=0.1, averaging=0.998)
TRAINED_LONGER: tuple[float, ...] = (1.0, 1.5, 2.25)
"""How many times its steps a subject's LoRA is trained until it meets its gate."""
STYLE_TRAINED_LONGER: tuple[float, ...] = (1.0, 1.5)
"""The same for a style's: beyond that it loses more kinds than it gains in style."""


@dataclass(frozen=True)
class Job:
    """Where a training reads and writes, for how long each stage may run, and in how many processes."""

    cache: Path
    out: Path
    minutes: float = math.inf
    workers: int = 1
    """Processes: they share out the LoRAs, and two of them train what is in `BESIDE` at the same time."""
    share: float = 1.0
    """Of the steps of every training that are done; less than 1 is a rehearsal, which learns nothing."""

    def factors(self, recipe: Recipe) -> tuple[float, ...]:
        """How many times its steps a LoRA may be trained; a rehearsal waits for no gate."""
        if self.share < 1:
            return (1.0,)
        return STYLE_TRAINED_LONGER if recipe.kind == STYLE else TRAINED_LONGER

    @property
    def loras(self) -> Path:
        """The folder of the finished LoRAs."""
        return self.out / "loras"


def encoder_of(cache: Path) -> nn.Module:
    """The autoencoder as its first training left it: its latents are those that the denoiser learns."""
    return _folded(cache, "autoencoder")


def decoder_of(cache: Path) -> nn.Module:
    """The same encoder with the refined decoder."""
    return _folded(cache, "decoder")


def _folded(cache: Path, name: str) -> nn.Module:
    """An autoencoder of the cache with the latents' statistics folded into its weights."""
    network = build_autoencoder()
    network.load_state_dict(autoencoder.kept_average(cache, name))
    drawn = torch.cat([kinds_in_style(cache, KINDS, style, "kinds")[::4] for style in BASE_STYLES])
    base.normalise_autoencoder(network.eval(), drawn)
    return network


def base_latents(cache: Path) -> Tensor:
    """Latents of the base pictures, [kinds, styles, 4, 16, 16]; computed once."""

    def encoded() -> Tensor:
        network = encoder_of(cache)
        columns = [
            base.encode_pictures(network, kinds_in_style(cache, KINDS, style, "kinds"))
            for style in BASE_STYLES
        ]
        return torch.stack(columns, 1)

    latents: Tensor = kept(cache / "latents.pt", encoded)
    return latents


def reader_of(cache: Path) -> text.Reader:
    """The trained text encoder with its teaching layers."""
    words = text.Words.of(base_prompts())
    reader = text.Reader(len(words.numbers), len(KINDS), len(BASE_STYLES))
    reader.load_state_dict(autoencoder.kept_average(cache, "text"))
    return reader.eval()


def said_of(cache: Path) -> base.Said:
    """The encoded prompts of the base training."""
    encoder, prompts = reader_of(cache).text_encoder, base_prompts()
    strange = prompts_with_unknown_words(MET, STYLES[CONTENT_STYLE])
    full = text.full_vocabulary(encoder, text.Words.of(prompts), strange, seed=1)
    unknown = text.read(full, strange)
    return base.Said(
        text.contexts(encoder, prompts, text.Words.of(prompts)),
        unknown.reshape(len(MET), -1, *unknown.shape[1:]),
    )


def trained_model(cache: Path) -> Model:
    """The trained networks from the cache's checkpoints, with the full vocabulary."""
    denoiser = build_denoiser()
    denoiser.load_state_dict(autoencoder.kept_average(cache, "base"))
    encoder, words = reader_of(cache).text_encoder, text.Words.of(base_prompts())
    full = text.full_vocabulary(encoder, words, trigger_prompts())
    return Model(decoder_of(cache), denoiser, full).eval()


def train_autoencoder(job: Job) -> None:
    """Stage ``vae``: the autoencoder."""
    autoencoder.train(job.cache, autoencoder.PLAN.shortened(job.share), job.minutes)


def train_text(job: Job) -> None:
    """Stage ``text``: the text encoder."""
    text.train(job.cache, base_latents(job.cache), TEXT_PLAN.shortened(job.share), job.minutes)


def train_base(job: Job) -> None:
    """Stage ``base``: the denoiser."""
    plan = BASE_PLAN.shortened(job.share)
    base.train(job.cache, base_latents(job.cache), said_of(job.cache), plan, job.minutes)


def train_decoder(job: Job) -> None:
    """Stage ``decoder``: the decoder once more, on whole pictures; latents stay."""
    drawn = autoencoder.lessons(job.cache)
    autoencoder.refine(job.cache, drawn, autoencoder.DECODER_PLAN.shortened(job.share), job.minutes)


def train_judges(job: Job) -> None:
    """Stage ``judges``: the judges, on drawings, and their file."""
    judges.train(job.cache, decoder_of(job.cache), job.share)
    judges.from_cache(job.cache).save(job.out / JUDGES)


def train_loras(job: Job, names: Iterable[str] = RECIPES) -> None:
    """Stage ``loras``: LoRAs on the checkpoint of the output folder, longer where they miss their gate."""
    for done in shared(partial(train_lora, job), names, job.workers):
        print(done, flush=True)


def train_lora(job: Job, name: str) -> str:
    """Train one LoRA, or go on, until it meets its gate or has had its longest training; says how it went.

    A file that was trained longer than a factor asks for has missed its gate there: no need to see it again.
    """
    recipe, path = recipe_of(name), job.loras / f"{name}.safetensors"
    for factor in job.factors(recipe):
        asked = loras.longer(recipe, job.share * factor)
        if steps_of(path) > asked.build.steps:
            continue
        loras.train(checkpoint.model_of(job.out), asked, job.cache, job.loras)
        if all(gate.met for gate in measure_lora(job, name)):
            return f"{name}: gate met after {asked.build.steps} steps"
    return f"{name}: gate missed after {steps_of(path)} steps"


def measure_gates(job: Job) -> None:
    """Stage ``gates``: measure and write every gate; of the LoRAs, those whose files are there."""
    model, panel = checkpoint.model_of(job.out), judges_of(job.out)
    measured = gates.autoencoder_gates(model, job.cache) + gates.judge_gates(panel, model, job.cache)
    measured += gates.base_gates(model, panel)
    there = [name for name in RECIPES if (job.loras / f"{name}.safetensors").exists()]
    for of_one in shared(partial(measure_lora, job), there, job.workers):
        measured += of_one
    gates.write(measured, job.out)
    print(gates.table(measured))


def measure_lora(job: Job, name: str) -> list[gates.Gate]:
    """The gates of one finished LoRA."""
    path = job.loras / f"{name}.safetensors"
    return gates.lora_gates(checkpoint.model_of(job.out), judges_of(job.out), recipe_of(name), path)


STAGES: dict[str, Callable[[Job], object]] = {
    "icons": lambda job: icons.fetch(job.cache),
    "vae": train_autoencoder,
    "text": train_text,
    "base": train_base,
    "decoder": train_decoder,
    "judges": train_judges,
    "checkpoint": lambda job: checkpoint.export(trained_model(job.cache), job.out),
    "loras": train_loras,
    "gates": measure_gates,
    "truth": lambda job: truth.write(job.cache, job.out / truth.NAME),
}


BESIDE: tuple[tuple[str, ...], ...] = (("text", "base"), ("decoder", "judges"))
"""Stages that need the autoencoder and nothing of one another: more than one worker trains them at the same
time. Two processes do a little more than two threads (``tests/bench/bench_training.py``)."""


def run(job: Job, stages: tuple[str, ...] = tuple(STAGES)) -> None:
    """Run stages in their order."""
    job.out.mkdir(parents=True, exist_ok=True)
    beside = {stage for chain in BESIDE for stage in chain}
    first = next((place for place, stage in enumerate(stages) if stage in beside), len(stages))
    chains = [tuple(stage for stage in chain if stage in stages) for chain in BESIDE]
    _run_in_turn(job, stages[:first])
    for _ in shared(partial(_run_in_turn, job), filter(None, chains), job.workers):
        pass
    _run_in_turn(job, tuple(stage for stage in stages[first:] if stage not in beside))


def _run_in_turn(job: Job, stages: tuple[str, ...]) -> None:
    """Run stages one after the other, in this process."""
    for stage in stages:
        STAGES[stage](job)
