"""The pairs that are fused: a held-out subject's LoRA and a held-out style's, and how a prompt calls them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from klora.errors import KloraError
from klora.lab import truth, world
from klora.lab.loras import RECIPES, Recipe

HALVES: dict[str, tuple[str, ...]] = {
    "development": world.DEVELOPMENT_SUBJECTS,
    "test": world.TEST_SUBJECTS,
}
"""Subjects for choosing defaults, and subjects that are only reported."""


@dataclass(frozen=True)
class Pair:
    """A content LoRA and a style LoRA of the lab; ``folder`` holds their files."""

    content: Recipe
    style: Recipe
    folder: Path

    @property
    def name(self) -> str:
        """``strawberry + ink``."""
        return f"{short_name(self.content)} + {short_name(self.style)}"

    @property
    def subject(self) -> str:
        """What the picture should show."""
        assert self.content.subject is not None
        return self.content.subject

    @property
    def prompt(self) -> str:
        """What a user writes: both trigger words."""
        return f"{self.content.trigger}, {self.style.trigger}"

    @property
    def content_file(self) -> Path:
        """The content LoRA's file."""
        return self.folder / f"{self.content.name}.safetensors"

    @property
    def style_file(self) -> Path:
        """The style LoRA's file."""
        return self.folder / f"{self.style.name}.safetensors"


def short_name(recipe: Recipe) -> str:
    """A LoRA's name without its kind: ``content-fox`` is ``fox``."""
    return recipe.name.removeprefix(f"{recipe.kind}-")


def recipe_of(kind: str, name: str) -> Recipe:
    """The recipe with this name, with or without its kind; raises `KloraError` listing the known names."""
    of_kind = {short_name(one): one for one in RECIPES.values() if one.kind == kind}
    found = of_kind.get(name.removeprefix(f"{kind}-"))
    if found is None:
        raise KloraError(f"the lab has no {kind} LoRA {name}; there are: {', '.join(of_kind)}.")
    return found


def make_pair(content: str, style: str, folder: Path) -> Pair:
    """The pair of two named LoRAs; raises `KloraError` if a file is missing."""
    pair = Pair(recipe_of("content", content), recipe_of("style", style), folder)
    for file in (pair.content_file, pair.style_file):
        if not file.exists():
            raise KloraError(
                f"the LoRA {file.stem} is not in {folder}; train it: python -m klora.lab train --stage loras "
                f"--lora {file.stem}"
            )
    return pair


def default_styles() -> list[str]:
    """One style LoRA for each held-out style: the first that is listed."""
    first: dict[str, str] = {}
    for recipe in RECIPES.values():
        if recipe.kind == "style":
            first.setdefault(recipe.style, short_name(recipe))
    return list(first.values())


def all_pairs(
    half: str, folder: Path, subjects: Sequence[str] | None = None, styles: Sequence[str] | None = None
) -> list[Pair]:
    """Every subject of a half with every style, where there is a true drawing.

    ``subjects`` and ``styles`` are names of LoRAs, with or without their kind. Raises `KloraError` for an
    unknown name, a subject of the other half, or a missing file.
    """
    chosen = [recipe_of("content", name) for name in subjects or HALVES[half]]
    strangers = [one.name for one in chosen if one.subject not in HALVES[half]]
    if strangers:
        raise KloraError(f"{', '.join(strangers)}: not in the {half} half; the halves are never mixed.")
    pairs = [
        make_pair(content.name, style, folder) for content in chosen for style in styles or default_styles()
    ]
    kept = [pair for pair in pairs if (pair.subject, pair.style.style) in truth.drawings()]
    if not kept:
        raise KloraError("none of these pairs has a true drawing; choose other subjects or styles.")
    return kept
