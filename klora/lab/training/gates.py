"""The gates: what the model and each LoRA alone must reach before any word about fusion."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from klora.lab import samples
from klora.lab.judges import Judges
from klora.lab.lora_files import merged, strength
from klora.lab.model import Model, to_signed
from klora.lab.recipes import MET, STYLE, STYLE_VALIDATION, Recipe
from klora.lab.scoring import subject_scores
from klora.lab.training.autoencoder import reconstruct, signal_to_noise
from klora.lab.training.judges import EVERY_STYLE, accuracies
from klora.lab.world.drawing import kinds_in_style
from klora.lab.world.individuals import INDIVIDUALS
from klora.lab.world.kinds import KINDS, SUBJECTS, words
from klora.lab.world.prompts import prompt
from klora.lab.world.styles import BASE_STYLES, CONTENT_STYLE, STYLE_NAMES, STYLES

CONTENT_SEEDS = tuple(range(10))
STYLE_SEEDS = (0, 1)
EVERY = 10
"""Of the kinds that no pair is about, each tenth is drawn for the record of the base model."""


@dataclass(frozen=True)
class Gate:
    """One measured figure and the least that is asked of it."""

    name: str
    value: float
    least: float

    @property
    def met(self) -> bool:
        """Whether the figure is reached."""
        return self.value >= self.least


def autoencoder_gates(model: Model, cache: Path) -> list[Gate]:
    """Reconstruction of every eleventh kind: the mean over the base styles counts, the rest is recorded."""
    noises = {}
    for style in STYLES.values():
        true = to_signed(kinds_in_style(cache, KINDS, style, "kinds")[::11])
        noises[style.name] = signal_to_noise(reconstruct(model.autoencoder, true), true)
    base = sum(noises[style.name] for style in BASE_STYLES) / len(BASE_STYLES)
    record = [Gate(f"autoencoder, {name}, dB", noise, 0) for name, noise in noises.items()]
    return [Gate("autoencoder, base styles, dB", base, 30.0), *record]


def judge_gates(judges: Judges, model: Model, cache: Path) -> list[Gate]:
    """Accuracy of the judges on drawings kept out of their lessons; in some styles it is only recorded."""
    found = accuracies(judges, cache, model.autoencoder)
    return [
        Gate(f"judge of {name}", value, 0 if name.endswith(EVERY_STYLE) else 0.97)
        for name, value in found.items()
    ]


def _share(right: Tensor) -> float:
    """The share of true values; in 64 bits, since nine of ten are less than .9 in 32."""
    return float(right.double().mean())


def named(judges: Judges, made: Tensor, kinds: Sequence[str], styles: Sequence[str]) -> tuple[float, float]:
    """Share of pictures [n, 3, 128, 128] in bytes whose kind, and whose style, is as asked."""
    kind = torch.tensor([SUBJECTS.index(name) for name in kinds])
    style = torch.tensor([STYLE_NAMES.index(name) for name in styles])
    seen, _ = judges.kinds_and_things(made)
    return (
        _share(seen.argmax(1) == kind),
        _share(judges.styles(made).argmax(1) == style),
    )


def base_gates(model: Model, judges: Judges) -> list[Gate]:
    """Samples in every base style: the kinds that pairs are about count, the others are recorded."""
    others = [kind for kind in KINDS if kind not in MET][::EVERY]
    kind, style = _drawn_right(model, judges, MET)
    other_kind, other_style = _drawn_right(model, judges, others)
    return [
        Gate("base, kinds of the pairs", kind, 0.95),
        Gate("base, style of these", style, 0.9),
        Gate("base, other kinds", other_kind, 0),
        Gate("base, style of other kinds", other_style, 0),
    ]


def _drawn_right(model: Model, judges: Judges, kinds: Sequence[str]) -> tuple[float, float]:
    """The shares of right kinds and of right styles among samples of ``kinds`` in every base style."""
    wanted = [(kind, style) for kind in kinds for style in BASE_STYLES]
    prompts = [prompt(kind, style) for kind, style in wanted]
    made = samples.generate(samples.pipeline(model), prompts, range(len(prompts)))
    return named(judges, made, [kind for kind, _ in wanted], [style.name for _, style in wanted])


def lora_gates(model: Model, judges: Judges, recipe: Recipe, path: Path) -> list[Gate]:
    """Samples with one LoRA alone: content in `CONTENT_STYLE`, a style of kinds that its lesson lacked."""
    with merged(model.denoiser, path):
        found = (
            _style_gates(model, judges, recipe)
            if recipe.kind == STYLE
            else [_identity_gate(model, judges, recipe)]
        )
    return [*found, Gate(f"{recipe.name}, norm", strength(path), 0)]


def _style_gates(model: Model, judges: Judges, recipe: Recipe) -> list[Gate]:
    """The plain kinds of the pairs of this half count; kinds of no pair are recorded."""
    of_pairs = [one.kind for one in INDIVIDUALS[recipe.half]]
    kind, style = _styled(model, judges, recipe, of_pairs, STYLE_SEEDS)
    other_kind, other_style = _styled(model, judges, recipe, STYLE_VALIDATION, STYLE_SEEDS[:1])
    return [
        Gate(f"{recipe.name}, style", style, 0.9),
        Gate(f"{recipe.name}, kind", kind, 0.9),
        Gate(f"{recipe.name}, style of other kinds", other_style, 0),
        Gate(f"{recipe.name}, other kinds", other_kind, 0),
    ]


def _styled(
    model: Model, judges: Judges, recipe: Recipe, kinds: Sequence[str], seeds: Sequence[int]
) -> tuple[float, float]:
    """The shares of right kinds and of the LoRA's style among samples of ``kinds``."""
    wanted = [(kind, seed) for kind in kinds for seed in seeds]
    prompts = [f"{words(kind)}, {recipe.trigger}" for kind, _ in wanted]
    made = samples.generate(samples.pipeline(model), prompts, [seed for _, seed in wanted])
    return named(judges, made, [kind for kind, _ in wanted], [recipe.subject] * len(wanted))


def _identity_gate(model: Model, judges: Judges, recipe: Recipe) -> Gate:
    """The share of samples that show the subject of a content LoRA, and exactly what it wears."""
    prompts = [f"{recipe.trigger}, {STYLES[CONTENT_STYLE].word} style"] * len(CONTENT_SEEDS)
    made = samples.generate(samples.pipeline(model), prompts, CONTENT_SEEDS)
    identity = _share(subject_scores(judges, recipe, made)[1])
    return Gate(f"{recipe.name}, identity", identity, 0.9)


def table(gates: Sequence[Gate]) -> str:
    """The gates as a Markdown table."""
    rows = [
        f"| {gate.name} | {gate.value:.3f} | {gate.least} | {'yes' if gate.met else 'no'} |" for gate in gates
    ]
    return "\n".join(["| figure | measured | asked | met |", "|---|---|---|---|", *rows])


def write(gates: Sequence[Gate], folder: Path) -> None:
    """Write the gates as ``gates.md`` and ``gates.json``."""
    (folder / "gates.md").write_text(table(gates) + "\n", encoding="utf-8")
    listed = [{**asdict(gate), "met": gate.met} for gate in gates]
    (folder / "gates.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
