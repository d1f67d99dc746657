"""The pairs of both worlds: a content LoRA and a style LoRA of the same half.

In the world of individuals a subject is one of a kind that the base model knows. The world of strangers is
the hard case: subjects that it does not know even by kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from klora.errors import KloraError
from klora.lab.recipes import INDIVIDUAL, RECIPES, STRANGER, STYLE, Recipe

WORLDS: dict[str, str] = {"individuals": INDIVIDUAL, "strangers": STRANGER}
"""Which content LoRAs a world's pairs have; first the one that is meant where none is named."""
HALVES: tuple[str, ...] = ("development", "test")


@dataclass(frozen=True)
class Pair:
    """A content LoRA and a style LoRA; ``folder`` holds their files."""

    content: Recipe
    style: Recipe
    folder: Path

    @property
    def name(self) -> str:
        """``bear-top-hat + riso``."""
        return f"{self.content.subject} + {self.style.subject}"

    @property
    def prompt(self) -> str:
        """What a user writes: both triggers."""
        return f"{self.content.trigger}, {self.style.trigger}"

    @property
    def files(self) -> tuple[Path, Path]:
        """The content LoRA's file and the style LoRA's."""
        content, style = (self.folder / f"{one.name}.safetensors" for one in (self.content, self.style))
        return content, style


def recipes_of(kind: str, half: str, names: Sequence[str] | None = None) -> list[Recipe]:
    """The recipes of a kind and a half, or those that are named; raises `KloraError` for an unknown name."""
    there = {one.subject: one for one in RECIPES.values() if one.kind == kind and one.half == half}
    unknown = set(names or ()) - set(there)
    if unknown:
        raise KloraError(
            f"the {half} half has no {kind} {', '.join(sorted(unknown))}; there are: {', '.join(there)}."
        )
    return [there[name] for name in names] if names else list(there.values())


def _spread(styles: list[Recipe], place: int, spread: int | None) -> list[Recipe]:
    """All styles, or ``spread`` of them from a place on that moves with the subject."""
    if spread is None:
        return styles
    return [styles[(place + step) % len(styles)] for step in range(min(spread, len(styles)))]


def all_pairs(
    world: str,
    half: str,
    folder: Path,
    subjects: Sequence[str] | None = None,
    styles: Sequence[str] | None = None,
    spread: int | None = None,
) -> list[Pair]:
    """Every subject of a world's half with every style of the half, subject by subject.

    With ``spread`` each subject with that many styles, which rotate, so that all are met alike. Raises
    `KloraError` for a file that is missing and for a spread below 1.
    """
    if spread is not None and spread < 1:
        raise KloraError(f"--spread is {spread}; write a number of at least 1.")
    pairs = [
        Pair(content, style, folder)
        for place, content in enumerate(recipes_of(WORLDS[world], half, subjects))
        for style in _spread(recipes_of(STYLE, half, styles), place, spread)
    ]
    for pair in pairs:
        for file in pair.files:
            if not file.exists():
                raise KloraError(
                    f"the LoRA {file.stem} is not in {folder}; "
                    "train it: python -m klora.lab train --stage loras"
                )
    return pairs
