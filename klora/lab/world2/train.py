"""Rebuilding world 2 from the icon sets, stage by stage; each stage goes on where it stopped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from klora.lab import base, checkpoint, icons, text
from klora.lab import gates as record
from klora.lab.autoencoder import kept_average, refine
from klora.lab.loop import Plan
from klora.lab.model import SECOND, Model, build_autoencoder, build_denoiser
from klora.lab.words import Words
from klora.lab.world2 import autoencoder, gates, judges, loras, truth
from klora.lab.world2.drawing import kinds_in_style
from klora.lab.world2.kinds import KINDS
from klora.lab.world2.prompts import base_prompts, trigger_prompts
from klora.lab.world2.recipes import MET, RECIPES
from klora.lab.world2.styles import BASE_STYLES, CONTENT_STYLE

TEXT_PLAN = Plan(steps=1500, rate=3e-3, warmup=30, fall=0.6, averaging=0.98, seed=4)
BASE_PLAN = Plan(steps=12_000, rate=3e-3, warmup=100, fall=0.5, averaging=0.998)
BASE_BATCH = 16
"""Half of the first world's. A picture costs the same in batches of 8 to 32 (measured), so an hour has twice
the steps; whether they teach as much, the gates tell."""
TRAINED_LONGER: tuple[float, ...] = (1.0, 1.5, 2.25)
"""How many times its steps a LoRA is trained until it meets its gate."""
JUDGES = "judges.safetensors"
OFTEN = {CONTENT_STYLE: 2.0}
"""How often a style is shown to the base model; the others once."""
OFTEN_MET = 10.0
"""How often the base model is shown the kinds that pairs, lessons and trials are about; the others once.
A model that people use knows a bear better than prayer beads, and it is bears that they dress."""


@dataclass(frozen=True)
class Job:
    """Where a training reads and writes, and for how long each stage may run."""

    cache: Path
    out: Path
    minutes: float = math.inf


def encoder_of(cache: Path) -> nn.Module:
    """The autoencoder as its first training left it: its latents are those that the denoiser learns."""
    return _folded(cache, "autoencoder")


def decoder_of(cache: Path) -> nn.Module:
    """The same encoder with the refined decoder."""
    return _folded(cache, "decoder")


def _folded(cache: Path, name: str) -> nn.Module:
    """An autoencoder of the cache with the latents' statistics folded into its weights."""
    network = build_autoencoder(SECOND)
    network.load_state_dict(kept_average(cache, name))
    drawn = torch.cat([kinds_in_style(cache, KINDS, style, "kinds")[::4] for style in BASE_STYLES])
    base.normalise_autoencoder(network.eval(), drawn)
    return network


def base_latents(cache: Path) -> Tensor:
    """Latents of the base pictures, [kinds, styles, 4, 16, 16]; computed once."""
    path = cache / "latents.pt"
    if not path.exists():
        network = encoder_of(cache)
        columns = [
            base.encode_pictures(network, kinds_in_style(cache, KINDS, style, "kinds"))
            for style in BASE_STYLES
        ]
        torch.save(torch.stack(columns, 1), path)
    kept: Tensor = torch.load(path, weights_only=True)
    return kept


def reader_of(cache: Path) -> text.Reader:
    """The trained text encoder with its teaching layers."""
    words = Words.of(base_prompts())
    reader = text.Reader(len(words.numbers), len(KINDS), len(BASE_STYLES), SECOND)
    reader.load_state_dict(kept_average(cache, "text"))
    return reader.eval()


def trained_model(cache: Path) -> Model:
    """The trained networks from the cache's checkpoints, with the full vocabulary."""
    denoiser = build_denoiser(SECOND)
    denoiser.load_state_dict(kept_average(cache, "base"))
    full = text.full_vocabulary(
        reader_of(cache).text_encoder, Words.of(base_prompts()), triggers=trigger_prompts(), shape=SECOND
    )
    return Model(decoder_of(cache), denoiser, full).eval()


def train_autoencoder(job: Job) -> None:
    """Stage ``vae``: the autoencoder."""
    autoencoder.train(job.cache, autoencoder.PLAN, job.minutes)


def train_decoder(job: Job) -> None:
    """Stage ``decoder``: the decoder once more, on whole pictures; latents stay."""
    drawn, plan = autoencoder.lessons(job.cache), autoencoder.DECODER_PLAN
    refine(job.cache, drawn, plan, job.minutes, SECOND, autoencoder.WHOLE_BATCH)


def train_text(job: Job) -> None:
    """Stage ``text``: the text encoder."""
    text.train(job.cache, base_latents(job.cache), TEXT_PLAN, job.minutes, base_prompts(), SECOND)


def train_base(job: Job) -> None:
    """Stage ``base``: the denoiser; the checkpoint is written to the output folder."""
    words = Words.of(base_prompts())
    contexts = text.contexts(reader_of(job.cache).text_encoder, base_prompts(), words)
    often = torch.tensor([OFTEN.get(style.name, 1.0) for style in BASE_STYLES])
    kinds = torch.tensor([OFTEN_MET if kind in MET else 1.0 for kind in KINDS])
    torch.manual_seed(BASE_PLAN.seed)
    start, latents = build_denoiser(SECOND), base_latents(job.cache)
    base.train(job.cache, latents, contexts, BASE_PLAN, job.minutes, start, often, BASE_BATCH, kinds)
    checkpoint.export(trained_model(job.cache), job.out, shape=SECOND)


def train_judges(job: Job) -> None:
    """Stage ``judges``: the judges, on drawings, and their file."""
    judges.train(job.cache, decoder_of(job.cache))
    judges.Judges.from_cache(job.cache).save(job.out / JUDGES)


def train_loras(job: Job) -> None:
    """Stage ``loras``: every LoRA on the checkpoint of the output folder, longer where it misses its gate."""
    model, panel = load_model(job.out), judges.Judges.load(job.out / JUDGES)
    for recipe in RECIPES.values():
        for factor in TRAINED_LONGER:
            asked = loras.longer(recipe, factor)
            path = loras.train(model, asked, job.cache, job.out / "loras")
            if all(gate.met for gate in gates.lora_gates(model, panel, recipe, path)):
                break


def measure_gates(job: Job) -> None:
    """Stage ``gates``: measure and write every gate whose parts are there."""
    panel = judges.Judges.load(job.out / JUDGES)
    found = gates.all_gates(load_model(job.out), panel, job.cache, job.out / "loras")
    record.write(found, job.out)
    print(record.table(found))


def load_model(folder: Path) -> Model:
    """The model of an output folder."""
    return checkpoint.load(folder / f"{checkpoint.NAME}.safetensors", SECOND)


STAGES: dict[str, Callable[[Job], object]] = {
    "icons": lambda job: icons.fetch(job.cache),
    "vae": train_autoencoder,
    "decoder": train_decoder,
    "text": train_text,
    "base": train_base,
    "judges": train_judges,
    "loras": train_loras,
    "gates": measure_gates,
    "truth": lambda job: truth.write(job.cache, job.out / truth.NAME),
}


def run(job: Job, stages: tuple[str, ...] = tuple(STAGES)) -> None:
    """Run stages in their order."""
    job.out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        STAGES[stage](job)
