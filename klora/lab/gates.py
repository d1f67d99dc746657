"""The gates: what the model and each LoRA alone must reach before any word about fusion."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from klora.lab import loras, samples, world
from klora.lab.autoencoder import pictures, reconstruct, signal_to_noise, to_signed
from klora.lab.judges import STYLE_NAMES, SUBJECTS, Judges, accuracies, accuracy
from klora.lab.lessons import all_drawings
from klora.lab.model import Model

SEEDS = (0, 1)
"""Seeds of each prompt of the base model and of the style LoRAs."""
CONTENT_SEEDS = tuple(range(8))


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
    """Reconstruction of training pictures: the mean over the base styles counts, the rest is recorded."""
    noises = {}
    for style in world.STYLES.values():
        true = to_signed(pictures(cache, world.BASE_SUBJECTS[::4], (style,)))
        noises[style.name] = signal_to_noise(reconstruct(model.autoencoder, true), true)
    base = sum(noises[style.name] for style in world.BASE_STYLES) / len(world.BASE_STYLES)
    record = [Gate(f"autoencoder, {name}, dB", noise, 0) for name, noise in noises.items()]
    return [Gate("autoencoder, base styles, dB", base, 26.0), *record]


def judge_gates(judges: Judges, model: Model, cache: Path) -> list[Gate]:
    """Accuracy of the judges on drawings kept out of their lessons; all but two figures are only recorded."""
    found = accuracies(judges, all_drawings(cache), model.autoencoder)
    asked = {"subject, kept-out drawings", "style, kept-out drawings"}
    return [Gate(f"judge of {name}", value, 0.97 if name in asked else 0) for name, value in found.items()]


def judged(
    judges: Judges, made: torch.Tensor, subjects: Sequence[str], styles: Sequence[str]
) -> tuple[float, float]:
    """Share of pictures [n, 3, 64, 64] whose subject, and whose style, the judges name as asked."""
    subject = torch.tensor([SUBJECTS.index(name) for name in subjects])
    style = torch.tensor([STYLE_NAMES.index(name) for name in styles])
    return accuracy(judges.subjects(made), subject), accuracy(judges.styles(made), style)


def base_gates(model: Model, judges: Judges, every: int = 2, sheet: Path | None = None) -> list[Gate]:
    """Samples of every second base subject in every base style."""
    wanted = [
        (subject, style.name, seed)
        for subject in world.BASE_SUBJECTS[::every]
        for style in world.BASE_STYLES
        for seed in SEEDS
    ]
    subjects, styles, seeds = zip(*wanted, strict=True)
    prompts = [
        world.prompt(subject, world.STYLES[style]) for subject, style in zip(subjects, styles, strict=True)
    ]
    made = samples.generate(samples.pipeline(model), prompts, seeds)
    if sheet:
        samples.save_sheet(made, 4 * len(SEEDS) * 2, sheet)
    subject, style = judged(judges, made, subjects, styles)
    return [Gate("base, subject", subject, 0.95), Gate("base, style", style, 0.95)]


def lora_gates(
    model: Model, judges: Judges, recipe: loras.Recipe, path: Path, sheet: Path | None = None
) -> list[Gate]:
    """Samples with one LoRA alone: a content LoRA of its subject, a style LoRA of subjects it never saw."""
    style = world.STYLES[recipe.style]
    asked = [recipe.subject] if recipe.subject else list(world.STYLE_LORA_VALIDATION)
    seeds = CONTENT_SEEDS if recipe.subject else SEEDS
    wanted = [(subject, seed) for subject in asked for seed in seeds]
    with loras.merged(model.denoiser, path):
        made = samples.generate(
            samples.pipeline(model),
            [world.prompt(subject, style) for subject, _ in wanted],
            [seed for _, seed in wanted],
        )
    if sheet:
        samples.save_sheet(made, 8, sheet)
    subject_score, style_score = judged(judges, made, [s for s, _ in wanted], [recipe.style] * len(wanted))
    if recipe.kind == "content":
        return [Gate(f"{recipe.name}, subject", subject_score, 0.95)]
    return [
        Gate(f"{recipe.name}, style", style_score, 0.95),
        Gate(f"{recipe.name}, subject", subject_score, 0.9),
    ]


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
