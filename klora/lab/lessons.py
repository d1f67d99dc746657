"""The true drawings that the judges learn from, which of them are kept out, and how they are distorted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from klora.lab import world
from klora.lab.autoencoder import pictures
from klora.lab.world import Style, on_white

SUBJECTS: tuple[str, ...] = world.BASE_SUBJECTS + world.HELD_OUT_SUBJECTS
STYLE_NAMES: tuple[str, ...] = tuple(world.STYLES)

OTHER_HANDS: tuple[Style, ...] = (
    Style("emojione", "", "emojione", on_white),
    Style("emojione-monotone", "", "emojione-monotone", on_white),
    Style("fxemoji", "", "fxemoji", on_white),
    Style("fluent-emoji", "", "fluent-emoji", on_white),
    Style("noto", "", "noto", on_white),
    Style("twemoji", "", "twemoji", on_white),
)
"""Sets that only the subject judge sees: more ways to draw a subject. Two share a
style's geometry: fluent-emoji that of `fluent`, twemoji that of `sepia`."""

SOURCES: tuple[Style, ...] = (*world.STYLES.values(), *OTHER_HANDS)
OWN_GEOMETRY: tuple[str, ...] = ("vintage",)
"""Styles of a set that nothing else in the lessons is drawn from."""
_OTHER_SOURCES: tuple[str, ...] = (*STYLE_NAMES, "emojione", "noto", "twemoji")
"""What subjects outside the lab's world are drawn in, to teach the judges to look."""


@dataclass
class Drawings:
    """True drawings with their labels."""

    drawn: Tensor
    """[n, 3, 64, 64] in bytes."""
    subject: Tensor
    """Index into `SUBJECTS`; beyond them subjects that the lab's model never meets, [n]."""
    style: Tensor
    """Index into `SOURCES`, whose first entries are `STYLE_NAMES`, [n]."""

    def where(self, chosen: Tensor) -> Drawings:
        """The drawings for which `chosen` [n] is true."""
        return Drawings(self.drawn[chosen], self.subject[chosen], self.style[chosen])


def _source(cache: Path, group: str, subjects: tuple[str, ...], source: Style) -> tuple[Tensor, Tensor]:
    """A group's drawings from one source and the places of their subjects in the group; rendered once."""
    places = [i for i, subject in enumerate(subjects) if world.exists(cache, subject, source)]
    path = cache / f"lessons-{group}-{source.name}.pt"
    if not path.exists():
        torch.save(pictures(cache, subjects, (source,)), path)
    drawn: Tensor = torch.load(path, weights_only=True)
    if len(drawn) != len(places):
        raise ValueError(f"{path.name} holds {len(drawn)} drawings, not {len(places)}; delete it")
    return drawn, torch.tensor(places)


def all_drawings(cache: Path) -> Drawings:
    """Every drawing of the lab's subjects from all sources, then of other subjects."""
    parts = []
    others = world.other_subjects(cache)
    for number, source in enumerate(SOURCES):
        groups = [("world", SUBJECTS, 0)]
        if source.name in _OTHER_SOURCES:
            groups.append(("others", others, len(SUBJECTS)))
        for group, subjects, first in groups:
            drawn, places = _source(cache, group, subjects, source)
            parts.append(Drawings(drawn, places + first, torch.full_like(places, number)))
    return Drawings(
        torch.cat([part.drawn for part in parts]),
        torch.cat([part.subject for part in parts]),
        torch.cat([part.style for part in parts]),
    )


def kept_out_of_subjects(drawings: Drawings) -> Tensor:
    """True for what the subject judge does not learn from, [n]: one drawing of nine in ten base subjects.

    Its style rotates over the lab's seven. In `OWN_GEOMETRY` the judge has seen no drawing of the subject by
    that set, and only every third turn is kept out: the judge is to know the subjects of the lab in all
    hands. In the other styles it has seen the same shapes in a sibling style.
    """
    turn = drawings.subject // len(STYLE_NAMES)
    kept = (drawings.subject < len(world.BASE_SUBJECTS)) & (
        drawings.style == drawings.subject % len(STYLE_NAMES)
    )
    return kept & (~by_an_unseen_hand(drawings) | (turn % 3 == 0))


def by_an_unseen_hand(drawings: Drawings) -> Tensor:
    """True for drawings in a style of `OWN_GEOMETRY`, [n]."""
    own = torch.tensor([source.name in OWN_GEOMETRY for source in SOURCES])
    return own[drawings.style]


def kept_out_of_styles(drawings: Drawings) -> Tensor:
    """True for every drawing of the held-out subjects and of every tenth other subject, [n]."""
    held = (drawings.subject >= len(world.BASE_SUBJECTS)) & (drawings.subject < len(SUBJECTS))
    return held | ((drawings.subject >= len(SUBJECTS)) & (drawings.subject % 10 == 0))


def distort(seen: Tensor, generator: torch.Generator, colours: bool) -> Tensor:
    """Pictures [b, 3, 64, 64] in -1 to 1 shifted, turned, resized, blurred and noisy.

    With `colours` also tinted, grey, negative, in two or three random colours, or as outlines; without,
    turned and noisy half as much, as style is in details.
    No flips: the truth stays unambiguous.
    """
    count = len(seen)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    strength = 1.0 if colours else 0.5
    turn, size = uniform(-0.2 * strength, 0.2 * strength), uniform(0.85, 1.2)
    stretch = uniform(0.9, 1.1)
    cosine, sine = size * turn.cos(), size * turn.sin()
    shift = 0.12 * (2 * torch.rand(count, 2, generator=generator) - 1)
    rows = [
        torch.stack([cosine * stretch, -sine, shift[:, 0]], 1),
        torch.stack([sine, cosine / stretch, shift[:, 1]], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1), list(seen.shape), align_corners=False)
    moved = functional.grid_sample(seen, grid, padding_mode="border", align_corners=False)
    if colours:
        moved = _recolour(moved, generator)
    soft = functional.avg_pool2d(moved, 3, stride=1, padding=1, count_include_pad=False)
    blur = uniform(-0.5, 1).clamp_min(0)[:, None, None, None]
    moved = moved + blur * (soft - moved)
    noise = torch.randn(moved.shape, generator=generator) * uniform(0, 0.1 * strength)[:, None, None, None]
    return (moved + noise).clamp(-1, 1)


def _recolour(seen: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the pictures stay; the rest is recoloured at random, so that shape must count."""
    kind = torch.randint(10, (len(seen),), generator=generator)
    made = seen.clone()
    for which, paint in ((5, _tinted), (6, _grey), (7, _ramped), (8, _ramped), (9, _outlined)):
        chosen = kind == which
        if chosen.any():
            made[chosen] = paint(seen[chosen], generator)
    negative = (torch.rand(len(seen), generator=generator) < 0.1)[:, None, None, None]
    return torch.where(negative, -made, made)


def _tinted(seen: Tensor, generator: torch.Generator) -> Tensor:
    """Colour channels mixed at random."""
    mix = torch.eye(3) + 0.25 * torch.randn(len(seen), 3, 3, generator=generator)
    return torch.einsum("bij,bjhw->bihw", mix / mix.sum(-1, keepdim=True), seen)


def _grey(seen: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness alone."""
    return seen.mean(1, keepdim=True).expand_as(seen)


def _between(value: Tensor, dark: Tensor, light: Tensor) -> Tensor:
    """A colour between two [b, 3, 1, 1] by a value [b, 1, h, w] from 0 to 1."""
    return dark + (light - dark) * value


def _colours(count: int, generator: torch.Generator) -> Tensor:
    """Random colours, [count, 3, 1, 1]."""
    return 2 * torch.rand(count, 3, 1, 1, generator=generator) - 1


def _ramped(seen: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness turned into three random colours, dark to light, on white."""
    count = len(seen)
    value = seen.mean(1, keepdim=True) / 2 + 0.5
    dark, middle, light = (_colours(count, generator) for _ in range(3))
    dark, light = 0.5 * dark - 0.5, 0.4 * light + 0.6
    low = _between((2 * value).clamp_max(1), dark, middle)
    made = _between((2 * value - 1).clamp_min(0), low, light)
    return torch.where(seen.amin(1, keepdim=True) > 0.98, 1.0, made)


def _outlined(seen: Tensor, generator: torch.Generator) -> Tensor:
    """Outlines in one random colour on another."""
    across = functional.pad((seen[..., 1:] - seen[..., :-1]).abs().amax(1, keepdim=True), (0, 1))
    down = functional.pad((seen[..., 1:, :] - seen[..., :-1, :]).abs().amax(1, keepdim=True), (0, 0, 0, 1))
    line = (4 * torch.maximum(across, down) - 0.4).clamp(0, 1)
    count = len(seen)
    return _between(line, 0.5 * _colours(count, generator) - 0.5, 0.5 * _colours(count, generator) + 0.5)
