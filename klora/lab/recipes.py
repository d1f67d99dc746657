"""How the LoRAs are trained: as differently as people train those that they mix."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle

from klora.lab.world.individuals import FURTHER as FURTHER_INDIVIDUALS
from klora.lab.world.individuals import INDIVIDUALS, Individual
from klora.lab.world.kinds import STRANGERS, listed, words
from klora.lab.world.styles import BASE_STYLES, CONTENT_STYLE, STYLES, STYLES_OF_HALF

ATTENTION: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
WHOLE: tuple[str, ...] = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONVOLUTIONS: tuple[str, ...] = (*WHOLE, "conv1", "conv2")
"""All linear layers and the convolutions of the residual blocks."""

INDIVIDUAL, STRANGER, STYLE = "individual", "stranger", "style"

FURTHER_HALF = "further"
"""What the individuals that repeat the test half have for a half; they meet its styles."""
_STYLES_FROM: dict[str, str] = {FURTHER_HALF: "test"}


@dataclass(frozen=True)
class Build:
    """The form of a LoRA and how hard it is trained."""

    rank: int
    """Rank in every layer."""
    alpha: int
    """The delta is alpha / rank times up @ down."""
    targets: tuple[str, ...]
    """Ends of the names of the layers that are trained."""
    drawings: int
    """From how many drawings it learns."""
    steps: int = 300
    rate: float = 4e-3
    dropout: float = 0.0
    """Share of a layer's inputs that a training step leaves out of the LoRA."""


@dataclass(frozen=True)
class Recipe:
    """One LoRA."""

    name: str
    kind: str
    """`INDIVIDUAL`, `STRANGER` or `STYLE`."""
    half: str
    subject: str
    """Name of the individual, of the stranger, or of the style."""
    trigger: str
    build: Build
    batch: int
    """Drawings in each step."""


CONTENT_BATCH = 4
"""A subject's LoRA learns from four drawings at most."""
STYLE_BATCH = 8

CONTENT_BUILDS: tuple[Build, ...] = (
    Build(4, 4, ATTENTION, 1),
    Build(4, 4, WHOLE, 1, steps=250),
    Build(4, 2, ATTENTION, 2),
    Build(8, 8, ATTENTION, 1, steps=500),
    Build(4, 4, ATTENTION, 3),
    Build(4, 1, WHOLE, 1, rate=8e-3),
    Build(4, 8, ATTENTION, 1, steps=400),
    Build(16, 8, ATTENTION, 1),
    Build(4, 4, ATTENTION, 4, steps=400),
    Build(4, 4, CONVOLUTIONS, 1, steps=250),
    Build(4, 4, ATTENTION, 1, steps=600, rate=6e-3),
    Build(32, 16, ATTENTION, 2),
    Build(4, 4, WHOLE, 2, steps=400),
    Build(8, 4, ATTENTION, 1),
    Build(4, 4, ATTENTION, 1, steps=250),
    Build(4, 8, ATTENTION, 3, steps=400),
)
"""The forms of the sixteen individuals' LoRAs of a half, in their order; the halves are built alike but for
`OWN_BUILDS`."""

OWN_BUILDS: dict[str, Build] = {
    "robot-ribbon": Build(4, 4, WHOLE, 4, steps=400),
    "egg-glasses": Build(8, 4, ATTENTION, 2, steps=250),
}
"""Individuals whose LoRAs miss their gate in the form of their row, and the form that meets it."""

STRANGER_BUILDS: tuple[Build, ...] = (
    Build(4, 4, ATTENTION, 1),
    Build(4, 4, WHOLE, 1),
    Build(4, 2, ATTENTION, 2, steps=400),
    Build(4, 4, ATTENTION, 1, steps=500),
    Build(4, 4, ATTENTION, 3, steps=400),
    Build(4, 8, WHOLE, 1),
    Build(4, 4, ATTENTION, 1, rate=6e-3),
    Build(8, 8, ATTENTION, 2, steps=400),
)
"""The forms of the eight strangers' LoRAs of a half."""

_DROPOUT = 0.3
STYLE_BUILDS: dict[str, Build] = {
    "riso": Build(8, 8, WHOLE, 8, steps=1150, rate=2e-3, dropout=_DROPOUT),
    "engraving": Build(8, 8, WHOLE, 8, steps=400, rate=2e-3, dropout=_DROPOUT),
    "poster": Build(16, 8, WHOLE, 6, steps=350, rate=2e-3, dropout=_DROPOUT),
    "porcelain": Build(8, 16, WHOLE, 8, steps=900, rate=1e-3, dropout=_DROPOUT),
    "halftone": Build(16, 8, WHOLE, 8, steps=750, rate=2e-3, dropout=_DROPOUT),
    "cutout": Build(8, 8, WHOLE, 8, steps=525, rate=2e-3, dropout=_DROPOUT),
}
"""The forms of the styles' LoRAs; how soon a style is learnt differs much. Two styles have none."""

STYLE_LESSONS: tuple[str, ...] = listed("sunflower anchor squid bicycle castle lemon crab umbrella")
"""Kinds whose drawings teach a style, the first of them where it learns from fewer."""

STYLE_VALIDATION: tuple[str, ...] = listed(
    "butterfly dolphin rooster telephone doughnut scissors violin airplane key tent bell bread"
)
"""Kinds of no pair that no style LoRA's lesson shows either; recorded beside the kinds of the pairs."""

MET: tuple[str, ...] = tuple(
    sorted({*STYLE_LESSONS, *STYLE_VALIDATION, *(one.kind for half in INDIVIDUALS.values() for one in half)})
)
"""The known kinds that some pair, lesson or trial is about."""


def half_of_styles(half: str) -> str:
    """The half whose styles a half's subjects meet: its own, or the one that it repeats."""
    return _STYLES_FROM.get(half, half)


def styles_of(half: str) -> list[str]:
    """The styles that a half's subjects meet and that have a LoRA."""
    styles = STYLES_OF_HALF[half_of_styles(half)]
    return [style.name for style in styles if style.name in STYLE_BUILDS]


def _individual(half: str, one: Individual, build: Build) -> Recipe:
    form = OWN_BUILDS.get(one.name, build)
    return Recipe(f"content-{one.name}", INDIVIDUAL, half, one.name, one.words, form, CONTENT_BATCH)


def _stranger(half: str, kind: str, build: Build) -> Recipe:
    return Recipe(f"content-{kind}", STRANGER, half, kind, words(kind), build, CONTENT_BATCH)


def _style(half: str, name: str, build: Build) -> Recipe:
    return Recipe(f"style-{name}", STYLE, half, name, f"{STYLES[name].word} style", build, STYLE_BATCH)


def _recipes() -> list[Recipe]:
    made = []
    for half in INDIVIDUALS:
        made += [_style(half, name, STYLE_BUILDS[name]) for name in styles_of(half)]
        people = zip(INDIVIDUALS[half], CONTENT_BUILDS, strict=True)
        made += [_individual(half, one, build) for one, build in people]
        strangers = zip(STRANGERS[half], STRANGER_BUILDS, strict=True)
        made += [_stranger(half, kind, build) for kind, build in strangers]
    return made


RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _recipes()}

LESSON_STYLES: tuple[str, ...] = tuple(
    sorted((style.name for style in BASE_STYLES), key=lambda name: name != CONTENT_STYLE)
)
"""Base styles in the order in which a content LoRA's drawings come: `CONTENT_STYLE` first."""

FURTHER: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _individual(FURTHER_HALF, one, build)
        for one, build in zip(FURTHER_INDIVIDUALS, cycle(CONTENT_BUILDS), strict=False)
    )
}
"""The further individuals' LoRAs, in the forms of the others; their files are not kept with the lab's."""


def recipe_of(name: str) -> Recipe:
    """The recipe of a LoRA's name, those of `FURTHER` included."""
    return RECIPES[name] if name in RECIPES else FURTHER[name]
