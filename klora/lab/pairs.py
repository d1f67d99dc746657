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
    """The recipes of a kind and one of `GROUPS`, or those that are named; raises `KloraError` for an unknown
    name.
    """
    halves = {half_of_styles(one) if kind == STYLE else one for one in GROUPS[half]}
    made = (*RECIPES.values(), *FURTHER.values())
    there = {one.subject: one for one in made if one.kind == kind and one.half in halves}
    unknown = set(names or ()) - set(there)
    if unknown:
        raise KloraError(
            f"the {half} half has no {kind} {', '.join(sorted(unknown))}; there are: {', '.join(there)}."
        )
    return [there[name] for name in names] if names else list(there.values())


def has_pairs(world: str, half: str) -> bool:
    """Whether every half of one of `GROUPS` has subjects of a world."""
    return all(recipes_of(WORLDS[world], one) for one in GROUPS[half])


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

    With ``spread`` each subject with that many styles, 1 or more, which rotate, so that all are met alike.
    Raises `KloraError` for a file that is missing and where a half has no such subject.
    """
    if not has_pairs(world, half):
        raise KloraError(f"the {half} half has no {world}; leave out --half or name another world.")
    pairs = [
        Pair(content, style, folder)
        for place, content in enumerate(recipes_of(WORLDS[world], half, subjects))
        for style in _spread(recipes_of(STYLE, content.half, styles), place, spread)
    ]
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
