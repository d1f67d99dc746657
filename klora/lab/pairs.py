"""The pairs of both worlds: a content LoRA and a style LoRA of the same half.

In the world of individuals a subject is one of a kind that the base model knows. The world of strangers is
the hard case: subjects that it does not know even by kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from klora.errors import KloraError
from klora.lab.recipes import (
    FURTHER,
    FURTHER_HALF,
    INDIVIDUAL,
    RECIPES,
    STRANGER,
    STYLE,
    Recipe,
    half_of_styles,
)

WORLDS: dict[str, str] = {"individuals": INDIVIDUAL, "strangers": STRANGER}
"""Which content LoRAs a world's pairs have; first the one that is meant where none is named."""
HALVES: tuple[str, ...] = ("development", "test")
GROUPS: dict[str, tuple[str, ...]] = {
    "development": ("development",),
    "test": ("test",),
    FURTHER_HALF: (FURTHER_HALF,),
    f"test+{FURTHER_HALF}": ("test", FURTHER_HALF),
}
"""What a benchmark can be made on: the half to choose on, the half to report, the individuals that repeat it,
whose LoRAs are not kept with the lab's, and both of these together."""


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
    half = half_of_styles(half) if kind == STYLE else half
    made = (*RECIPES.values(), *FURTHER.values())
    there = {one.subject: one for one in made if one.kind == kind and one.half == half}
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
    """Every subject of one of `GROUPS` in a world with every style that it meets, subject by subject.

    With ``spread`` each subject with that many styles, which rotate, so that all are met alike. Raises
    `KloraError` for a file that is missing, for a spread below 1, and where a half has no such subject.
    """
    if spread is not None and spread < 1:
        raise KloraError(f"--spread is {spread}; write a number of at least 1.")
    pairs: list[Pair] = []
    for one in GROUPS[half]:
        of_half = [
            Pair(content, style, folder)
            for place, content in enumerate(recipes_of(WORLDS[world], one, subjects))
            for style in _spread(recipes_of(STYLE, one, styles), place, spread)
        ]
        if not of_half:
            raise KloraError(f"the {one} half has no {world}; leave out --half or name another world.")
        pairs += of_half
    for pair in pairs:
        _check_files(pair)
    return pairs


def _check_files(pair: Pair) -> None:
    """Raise `KloraError` if a file of the pair is missing."""
    for recipe, file in zip((pair.content, pair.style), pair.files, strict=True):
        if not file.exists():
            how = "--further" if recipe.half == FURTHER_HALF else "--stage loras"
            raise KloraError(
                f"the LoRA {file.stem} is not in {pair.folder}; train it: python -m klora.lab train {how}"
            )
