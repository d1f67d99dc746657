"""The demo: one pair of the lab by every way of putting two LoRAs together, beside the true drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from klora.errors import KloraError
from klora.lab import checkpoint, samples, sheets, truth
from klora.lab.benchmark.making import Maker, Sampling, applied
from klora.lab.benchmark.methods import Method, method
from klora.lab.benchmark.scoring import score
from klora.lab.distance import feature_distance
from klora.lab.judges import Judges
from klora.lab.loras import RECIPES
from klora.lab.pairs import Pair, make_pair, short_name
from klora.pictures.heat_map import save_plan
from klora.schedule import Plan
from klora.settings import Settings

WEIGHTS = Path(__file__).parent / "weights"
SCHEDULES = ("S", "S*")
SHOWN_FIRST = {"content": "frog", "style": "riso"}
"""The pair that is shown where none is asked for; where a file is missing, the first that is there."""


@dataclass(frozen=True)
class Shown:
    """What one method made: pictures [seeds, 3, 64, 64] in bytes, their scores by name, each [seeds]."""

    method: Method
    pictures: Tensor
    scores: dict[str, Tensor]


@dataclass(frozen=True)
class Demo:
    """Everything that a demo made; ``plan`` is that of the schedule in the settings."""

    pair: Pair
    prompt: str
    seeds: tuple[int, ...]
    shown: list[Shown]
    plan: Plan


def names(kind: str, weights: Path = WEIGHTS) -> list[str]:
    """Names of the content or style LoRAs whose files are there, in the order of their recipes."""
    folder = weights / "loras"
    return [
        short_name(recipe)
        for recipe in RECIPES.values()
        if recipe.kind == kind and (folder / f"{recipe.name}.safetensors").exists()
    ]


def choose_pair(content: str | None, style: str | None, weights: Path = WEIGHTS) -> Pair:
    """The pair of these names, or of `SHOWN_FIRST`; raises `KloraError` without weights."""
    for name in (f"{checkpoint.NAME}.safetensors", "judges.safetensors"):
        if not (weights / name).exists():
            raise KloraError(f"{name} is not in {weights}; train the lab: python -m klora.lab train")
    found = {kind: names(kind, weights) for kind in ("content", "style")}
    for kind, there in found.items():
        if not there:
            raise KloraError(
                f"there is no {kind} LoRA in {weights / 'loras'}; train them: "
                "python -m klora.lab train --stage loras"
            )
    default = {kind: one if one in found[kind] else found[kind][0] for kind, one in SHOWN_FIRST.items()}
    return make_pair(content or default["content"], style or default["style"], weights / "loras")


def compared(settings: Settings) -> list[Method]:
    """What the demo shows: each LoRA alone, both added, and K-LoRA with both schedules."""
    fused = [
        Method(f"K-LoRA {schedule}", settings=dict(settings.replace(schedule=schedule).values))
        for schedule in SCHEDULES
    ]
    return [method("content only"), method("style only"), method("added 1+1"), *fused]


def run(
    pair: Pair,
    settings: Settings,
    seeds: Sequence[int],
    *,
    prompt: str | None = None,
    steps: int = samples.STEPS,
    weights: Path = WEIGHTS,
) -> Demo:
    """Make and judge all pictures."""
    from tqdm import tqdm

    maker = Maker(Sampling(weights, steps))
    judges = Judges.load(weights / "judges.safetensors")
    distance = feature_distance(judges)
    said, shown, plan = prompt or pair.prompt, [], None
    with tqdm(total=len(compared(settings)) * len(seeds), desc="pictures", unit="picture") as bar:
        for one in compared(settings):
            with applied(maker.pipe, pair, one) as fusion:
                pictures = samples.generate(maker.pipe, [said] * len(seeds), seeds, steps)
                if one.settings and one.settings["schedule"] == settings.schedule:
                    plan = fusion.plan()
            shown.append(Shown(one, pictures, score(judges, distance, pair, pictures)))
            bar.update(len(seeds))
    assert plan is not None
    return Demo(pair, said, tuple(seeds), shown, plan)


def save(demo: Demo, folder: Path) -> dict[str, Path]:
    """Write the contact sheet and the picture of the plan; returns what is where."""
    folder.mkdir(parents=True, exist_ok=True)
    true = truth.drawing(demo.pair.subject, demo.pair.style.style)
    rows = [[true, *(one.pictures[at] for one in demo.shown)] for at in range(len(demo.seeds))]
    labels = ["the true drawing", *(one.method.name for one in demo.shown)]
    sheet = sheets.labelled_sheet(
        rows,
        [f"seed {seed}" for seed in demo.seeds],
        labels,
        title=f"{demo.pair.name}: “{demo.prompt}”",
    )
    places = {"pictures": folder / "demo.png", "plan": folder / "plan.png"}
    sheet.save(places["pictures"])
    save_plan(demo.plan, str(places["plan"]), demo.pair.name)
    return places


def table(demo: Demo) -> str:
    """The judges' scores: how many pictures they name right, and their mean probability."""

    def cell(scores: dict[str, Tensor], name: str) -> str:
        right, likely = int(scores[name].sum()), float(scores[f"{name}_probability"].mean())
        return f"{right} of {len(demo.seeds)} ({likely:.2f})"

    lines = [f"{'':14} {'subject':>16} {'style':>16}"]
    for one in demo.shown:
        cells = [cell(one.scores, name) for name in ("subject", "style")]
        lines.append(f"{one.method.name:14} {cells[0]:>16} {cells[1]:>16}")
    lines.append("Pictures that the judges name right; in brackets the mean probability.")
    return "\n".join(lines)


def settle_threads() -> None:
    """At most two threads: the lab's layers are so small that more slow each other down."""
    torch.set_num_threads(min(2, torch.get_num_threads()))
