"""The demo: pairs of the lab by every way of putting two LoRAs together, beside the true drawings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from klora.errors import KloraError
from klora.files.writing import made_folder
from klora.lab import checkpoint, judges, scoring, sheets, truth
from klora.lab.fronts import glance
from klora.lab.fronts.methods import Method, method
from klora.lab.fronts.store import Sampling
from klora.lab.pairs import HALVES, WORLDS, Pair, all_pairs
from klora.lab.recipes import INDIVIDUAL, RECIPES, STRANGER, STYLE, Recipe
from klora.lab.samples import STEPS
from klora.lab.world.individuals import SAID
from klora.lab.world.kinds import words
from klora.pictures.heat_map import save_plan
from klora.planning import plan_files
from klora.presets import AS_PUBLISHED, BALANCED, Preset
from klora.schedule import Plan
from klora.settings import Settings

WEIGHTS = Path(__file__).parent / "weights"
CONTENTS, STYLES = 3, 2
"""How many subjects and styles are shown where none are asked for: the first of the half."""
HALF = HALVES[-1]
"""The half that nothing was chosen on."""
ENLARGED = 2
MEASURED = {"identity": "subject", "style": "style", "both": "both"}


@dataclass(frozen=True)
class Shown:
    """One row: pictures and scores by the label of the column, the true drawing first."""

    pair: Pair
    seed: int
    pictures: dict[str, Tensor]
    """Each [3, 128, 128] in bytes."""
    scores: dict[str, dict[str, float]]


def there(weights: Path = WEIGHTS) -> list[Recipe]:
    """The LoRAs whose files are there, in the order of their recipes."""
    return [one for one in RECIPES.values() if (weights / "loras" / f"{one.name}.safetensors").exists()]


def names(weights: Path = WEIGHTS) -> dict[str, list[str]]:
    """Names of the subjects and styles whose LoRAs are there, by kind."""
    kinds = dict.fromkeys(one.kind for one in RECIPES.values())
    return {kind: [one.subject for one in there(weights) if one.kind == kind] for kind in kinds}


def check_weights(weights: Path) -> None:
    """Raise `KloraError` if a file of the lab is missing."""
    checkpoint.check_weights(weights, (f"{checkpoint.NAME}.safetensors", judges.NAME, truth.NAME))


def choose_pairs(
    contents: Sequence[str], styles: Sequence[str], weights: Path = WEIGHTS, hard: bool = False
) -> list[Pair]:
    """Every named subject with every named style; where none is named, the first of their half.

    ``hard`` takes strangers in place of individuals; a subject that is named says itself which it is, so both
    together are refused. Raises `KloraError` also for an unknown name, for subjects and styles of two halves,
    and where no LoRA is there.
    """
    if hard and contents:
        raise KloraError(
            "--hard chooses among strangers by itself and cannot be combined with --content; leave one out."
        )
    check_weights(weights)
    named = [_known(name, (INDIVIDUAL, STRANGER)) for name in contents]
    named += [_known(name, (STYLE,)) for name in styles]
    half = named[0].half if named else HALF
    kind = named[0].kind if contents else STRANGER if hard else INDIVIDUAL
    ready = [one for one in there(weights) if one.half == half]
    shown = list(contents) or [one.subject for one in ready if one.kind == kind][:CONTENTS]
    drawn = list(styles) or [one.subject for one in ready if one.kind == STYLE][:STYLES]
    if not shown or not drawn:
        raise KloraError(
            f"there is no {STYLE if shown else kind} LoRA in {weights / 'loras'}; "
            "train them: python -m klora.lab train --stage loras"
        )
    world = next(name for name, of_world in WORLDS.items() if of_world == kind)
    return all_pairs(world, half, weights / "loras", shown, drawn)


def _known(name: str, kinds: tuple[str, ...]) -> Recipe:
    """The recipe of a subject or style; raises `KloraError` listing the names that there are."""
    known = {one.subject: one for one in RECIPES.values() if one.kind in kinds}
    if name not in known:
        raise KloraError(f"the lab has no {' or '.join(kinds)} {name}; there are: {', '.join(known)}.")
    return known[name]


def _settings_of(preset: Preset) -> Settings:
    return Settings(**preset.complete())


def compared(settings: Settings) -> glance.Methods:
    """What the demo shows beside each LoRA alone: both added, K-LoRA as published, and the settings.

    These stand under the preset's name where they are those that a new user has.
    """
    own = BALANCED.name if BALANCED.is_chosen_by(settings) else "your settings"
    shown = {
        "added 1 + 1": method("weights").at(0),
        f"K-LoRA as published ({AS_PUBLISHED.values['schedule']})": _settings_of(AS_PUBLISHED),
        own: settings,
    }
    return {label: (Method(label, chosen), float(chosen.balance)) for label, chosen in shown.items()}


def run(
    pairs: Sequence[Pair],
    settings: Settings,
    seeds: Sequence[int],
    *,
    prompt: str | None = None,
    steps: int = STEPS,
    weights: Path = WEIGHTS,
) -> list[Shown]:
    """Make and judge all pictures: a row for each pair and seed."""
    from tqdm import tqdm

    sampling, methods = Sampling(weights, steps=steps), compared(settings)
    wanted = [(pair, seed) for pair in pairs for seed in seeds]
    return [
        _row(sampling, pair, methods, seed, prompt) for pair, seed in tqdm(wanted, desc="rows", unit="row")
    ]


def _row(sampling: Sampling, pair: Pair, methods: glance.Methods, seed: int, prompt: str | None) -> Shown:
    pictures = glance.row(sampling, pair, methods, seed, prompt)
    made = torch.stack(list(pictures.values()))
    found = scoring.score(
        judges.judges_of(sampling.weights), pair.content, pair.style.subject, made, pictures[glance.TRUE]
    )
    scores = {label: {name: float(found[name][at]) for name in MEASURED} for at, label in enumerate(pictures)}
    return Shown(pair, seed, pictures, scores)


def plan_of(pair: Pair, settings: Settings, steps: int) -> Plan:
    """The plan of a pair with the settings, at the guidance of the pictures."""
    return plan_files(*pair.files, settings, steps, guidance_scale=Sampling.guidance)


def described(pair: Pair) -> list[str]:
    """What a picture of the pair should show, line by line: panda, with a crown, in porcelain style."""
    kind, things = scoring.kind_and_things(pair.content)
    worn = [f"{'and' if place else 'with'} {SAID[thing]}" for place, thing in enumerate(sorted(things))]
    return [words(kind), *worn, f"in {words(pair.style.subject)} style"]


def save(rows: Sequence[Shown], plan: Plan, folder: Path) -> dict[str, Path]:
    """Write the contact sheet, and the picture of the first pair's plan; returns what is where."""
    made_folder(folder)
    several = len({one.seed for one in rows}) > 1
    sheet = sheets.labelled_sheet(
        [list(one.pictures.values()) for one in rows],
        ["\n".join([*described(one.pair), *([f"seed {one.seed}"] if several else [])]) for one in rows],
        list(rows[0].pictures),
        enlarge=ENLARGED,
    )
    places = {"pictures": folder / "demo.png", "plan": folder / "plan.png"}
    sheet.save(places["pictures"])
    save_plan(plan, str(places["plan"]), rows[0].pair.name)
    return places


def table(rows: Sequence[Shown]) -> str:
    """How many pictures of each column the judges name right, the true drawings among them."""
    labels = list(rows[0].pictures)
    width = max(map(len, labels))
    lines = [f"{'':{width}} " + " ".join(f"{name:>10}" for name in MEASURED.values())]
    for label in labels:
        right = [int(sum(one.scores[label][name] for one in rows)) for name in MEASURED]
        lines.append(f"{label:{width}} " + " ".join(f"{f'{count} of {len(rows)}':>10}" for count in right))
    lines.append("Pictures in which the judges see the subject itself, the style, and both.")
    return "\n".join(lines)


def settle_threads() -> None:
    """At most two threads: the lab's layers are so small that more slow each other down."""
    torch.set_num_threads(min(2, torch.get_num_threads()))
