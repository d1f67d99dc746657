"""The true drawings that the judges learn from, and those that are kept out of their lessons.

Kinds are drawn as they are; composed drawings show a kind, made smaller as an individual is, with none, one
or two things at places drawn by lot. The individuals themselves are in no lesson: with what they could be
mistaken for, they are what the judges are tried on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from klora.lab.judges import UNKNOWN, worn
from klora.lab.keeping import kept
from klora.lab.recipes import STYLE_BUILDS
from klora.lab.world import icons, individuals
from klora.lab.world.drawing import kinds_in_style, stacked
from klora.lab.world.icons import Picture
from klora.lab.world.individuals import ALL_INDIVIDUALS, THINGS, Individual, Placed
from klora.lab.world.kinds import ALL_STRANGERS, KINDS, SUBJECTS
from klora.lab.world.styles import CONTENT_STYLE, OTHER_HANDS, STYLE_NAMES, STYLES

COMPOSED = 6000
COMPOSED_PARTS = 12
CROSSED = 6000
CROSSED_PARTS = 12
"""Beside the composed drawings, so many of an individual's kind with what one of the other half wears."""
CHANGED = 4000
CHANGED_PARTS = 8
"""And so many with what another of its own half wears, in the styles in which pairs are judged."""
STREWN = 4000
STREWN_PARTS = 8
"""And so many of every individual's kind with everything that is worn, anywhere, in these styles."""
JUDGED_STYLES: tuple[str, ...] = (CONTENT_STYLE, *STYLE_BUILDS)
"""The styles in which a question about things is ever asked of a sample."""
NEAR = 0.2
"""Places closer than this, in the kind's square, are taken for the same."""
OTHER_SENSES: frozenset[tuple[str, str]] = frozenset({("streamline-emojis", "turkey")})
"""Icons that show something else under the name: the country's flag, not the bird."""
SECOND = 0.3
"""Share of the strewn drawings with a second thing."""
OWN_SHARE = 0.35
"""Share of the composed drawings that show a kind that an individual is of."""


Wears = tuple[Placed, ...]
Dressed = tuple[str, Wears]
"""A kind, and what is laid over it."""
Labels = tuple[int, int, Tensor]
"""Numbers of kind and style, and what is worn, [things]."""


@dataclass
class Drawings:
    """Drawings with their labels."""

    drawn: Tensor
    """[n, 3, 128, 128] in bytes."""
    kind: Tensor
    """Index into `SUBJECTS`, [n]."""
    style: Tensor
    """Index into `STYLE_NAMES`, [n]; `UNKNOWN` for the drawings of other hands."""
    things: Tensor
    """1 for each of `THINGS` that is worn, 0 for others, `UNKNOWN` where it does not count, [n, things]."""

    def where(self, chosen: Tensor) -> Drawings:
        """The drawings for which `chosen` [n] is true."""
        return Drawings(self.drawn[chosen], self.kind[chosen], self.style[chosen], self.things[chosen])


def joined(parts: list[Drawings]) -> Drawings:
    """All drawings of some groups."""
    return Drawings(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("drawn", "kind", "style", "things"))
    )


def of_kinds(cache: Path) -> Drawings:
    """Every kind and every stranger in every style, as it is."""
    parts = []
    unknown = _none_worn(SUBJECTS)
    for number, style in enumerate(STYLES.values()):
        drawn = torch.cat(
            [
                kinds_in_style(cache, KINDS, style, "kinds"),
                kinds_in_style(cache, ALL_STRANGERS, style, "strangers"),
            ]
        )
        style_number = torch.full((len(SUBJECTS),), number)
        parts.append(Drawings(drawn, torch.arange(len(SUBJECTS)), style_number, unknown))
    return joined(parts)


def _none_worn(kinds: Sequence[str]) -> Tensor:
    """Labels of plain drawings, [kinds, things]: what is a thing itself may as well be worn."""
    return torch.tensor([[UNKNOWN if kind == thing else 0 for thing in THINGS] for kind in kinds])


def by_other_hands(cache: Path) -> Drawings:
    """Every kind and every stranger as designers draw it whose sets are no style, where they have it."""
    parts = []
    for style in OTHER_HANDS:
        there = tuple(
            kind
            for kind in SUBJECTS
            if icons.has(cache, style.set_name, kind) and (style.set_name, kind) not in OTHER_SENSES
        )
        drawn = kinds_in_style(cache, there, style, "hands")
        kinds = torch.tensor([SUBJECTS.index(kind) for kind in there])
        parts.append(Drawings(drawn, kinds, torch.full((len(there),), UNKNOWN), _none_worn(there)))
    return joined(parts)


def _widths() -> dict[str, float]:
    """Mean width of each thing on the individuals that wear it."""
    found: dict[str, list[float]] = {thing: [] for thing in THINGS}
    for one in ALL_INDIVIDUALS:
        for placed in one.wears:
            found[placed.thing].append(placed.width)
    return {thing: float(np.mean(widths)) for thing, widths in found.items()}


def _somewhere(thing: str, width: float, chance: np.random.Generator) -> Placed:
    """A thing at a place and in a size drawn by lot."""
    across, down = chance.uniform(0.2, 0.8), chance.uniform(0.0, 0.9)
    return Placed(thing, across, down, width * chance.uniform(0.8, 1.2), chance.uniform(-25, 25))


def composed_part(cache: Path, part: int) -> Drawings:
    """One part of the composed drawings, drawn once: anything on anything, in any style."""
    widths = _widths()
    own = [SUBJECTS.index(one.kind) for one in ALL_INDIVIDUALS]

    def choose(number: int, chance: np.random.Generator) -> Dressed:
        is_own = chance.random() < OWN_SHARE
        kind = int(chance.choice(own)) if is_own else int(chance.integers(len(SUBJECTS)))
        count = int(chance.choice(3, p=(0.2, 0.6, 0.2)))
        names = chance.choice(THINGS, count, replace=False)
        return SUBJECTS[kind], tuple(_somewhere(str(name), widths[str(name)], chance) for name in names)

    return _dressed_part(cache, f"composed-{part}", COMPOSED // COMPOSED_PARTS, choose, STYLE_NAMES, part)


def _shaken(wears: Wears, chance: np.random.Generator) -> Wears:
    """Things a little moved, resized and turned."""
    return tuple(
        Placed(
            placed.thing,
            placed.across + chance.normal(0, 0.05),
            placed.down + chance.normal(0, 0.05),
            placed.width * chance.uniform(0.85, 1.15),
            placed.turn + chance.uniform(-12, 12),
        )
        for placed in wears
    )


def crossed_part(cache: Path, part: int) -> Drawings:
    """One part of the crossed drawings; drawn once. They show where hats and glasses are worn, and neither an
    individual nor what it could be mistaken for, which stay within a half.
    """
    halves = list(individuals.INDIVIDUALS.values())

    def choose(number: int, chance: np.random.Generator) -> Dressed:
        own, other = halves[number % 2], halves[1 - number % 2]
        kind = own[int(chance.integers(len(own)))].kind
        return kind, _shaken(other[int(chance.integers(len(other)))].wears, chance)

    return _dressed_part(cache, f"crossed-{part}", CROSSED // CROSSED_PARTS, choose, STYLE_NAMES, 1000 + part)


def _same_places(one: Wears, other: Wears) -> bool:
    """Whether the same things are worn, all of them near the same places."""
    there = {placed.thing: placed for placed in other}
    return {placed.thing for placed in one} == set(there) and all(
        max(abs(p.across - there[p.thing].across), abs(p.down - there[p.thing].down)) < NEAR for p in one
    )


def _tried() -> list[Dressed]:
    """What the judges are tried on: the individuals and what they could be mistaken for."""
    own = [(one.kind, one.wears) for one in ALL_INDIVIDUALS]
    return own + [shown for one in ALL_INDIVIDUALS for shown in _mistakable(one)]


def _is_near(kind: str, wears: Wears, tried: Sequence[Dressed]) -> bool:
    """Whether a dressed kind is among ``tried``, or nearly."""
    return any(other == kind and _same_places(there, wears) for other, there in tried)


def changed_choices() -> list[Dressed]:
    """Kinds with what others of their half wear, but for the individuals' own things and but for what the
    judges are tried on, or nearly that.
    """
    tried = _tried()
    return [
        (one.kind, other.wears)
        for half in individuals.INDIVIDUALS.values()
        for one in half
        for other in half
        if one.things != other.things and not _is_near(one.kind, other.wears, tried)
    ]


def changed_part(cache: Path, part: int) -> Drawings:
    """One part of the drawings of `changed_choices`, drawn once."""
    choices = changed_choices()

    def choose(number: int, chance: np.random.Generator) -> Dressed:
        kind, wears = choices[int(chance.integers(len(choices)))]
        return kind, _shaken(wears, chance)

    return _dressed_part(
        cache, f"changed-{part}", CHANGED // CHANGED_PARTS, choose, JUDGED_STYLES, 2000 + part
    )


def strewn_part(cache: Path, part: int) -> Drawings:
    """One part of the strewn drawings, drawn once: every kind of an individual with every thing in turn, and
    now and then with a second.
    """
    widths, each = _widths(), STREWN // STREWN_PARTS

    def choose(number: int, chance: np.random.Generator) -> Dressed:
        turn, place = divmod(part * each + number, len(ALL_INDIVIDUALS))
        first = THINGS[turn % len(THINGS)]
        others = [thing for thing in THINGS if thing != first]
        names = [first, *chance.choice(others, int(chance.random() < SECOND), replace=False)]
        kind = ALL_INDIVIDUALS[place].kind
        return kind, tuple(_somewhere(str(name), widths[str(name)], chance) for name in names)

    return _dressed_part(cache, f"strewn-{part}", each, choose, JUDGED_STYLES, 3000 + part)


def _dressed_part(
    cache: Path,
    name: str,
    count: int,
    choose: Callable[[int, np.random.Generator], Dressed],
    styles: Sequence[str],
    seed: int,
) -> Drawings:
    """Drawings of kinds with things, as `choose` says, in styles drawn by lot, but for what the
    judges are tried on, or nearly that; drawn once.
    """

    def dressed() -> tuple[Tensor, list[Labels]]:
        chance, tried = np.random.default_rng(seed), _tried()
        made: list[Picture] = []
        labels: list[Labels] = []
        for number in tqdm(range(count), desc=name, mininterval=10):
            kind, wears = choose(number, chance)
            while _is_near(kind, wears, tried):
                kind, wears = choose(number, chance)
            style = styles[int(chance.integers(len(styles)))]
            made.append(individuals.draw(cache, kind, wears, STYLES[style]))
            things = worn(frozenset(placed.thing for placed in wears))
            labels.append((SUBJECTS.index(kind), STYLE_NAMES.index(style), things))
        return stacked(made), labels

    drawn, told = kept(cache / "drawings" / f"{name}.pt", dressed)
    kinds, numbers = (torch.tensor([label[place] for label in told]) for place in (0, 1))
    return Drawings(drawn, kinds, numbers, torch.stack([label[2] for label in told]))


def composed(cache: Path) -> Drawings:
    """All composed drawings: anything on anything, crossed, changed and strewn ones."""
    parts = [composed_part(cache, part) for part in range(COMPOSED_PARTS)]
    parts += [crossed_part(cache, part) for part in range(CROSSED_PARTS)]
    parts += [changed_part(cache, part) for part in range(CHANGED_PARTS)]
    return joined(parts + [strewn_part(cache, part) for part in range(STREWN_PARTS)])


def _mistakable(one: Individual) -> list[Dressed]:
    """What an individual could be mistaken for: its kind plain or with other things, others with its own."""
    same_half = next(
        group for group in individuals.INDIVIDUALS.values() if any(other is one for other in group)
    )
    place = same_half.index(one)
    others = [same_half[(place + step) % len(same_half)] for step in (1, 4, 7, 11)]
    with_others = [(one.kind, other.wears) for other in others if other.things != one.things]
    return [(one.kind, ()), *with_others, *((other.kind, one.wears) for other in others)]


def trial(cache: Path) -> tuple[Drawings, Drawings]:
    """What the judges are tried on: the individuals in all styles, and what they could be mistaken for."""
    path = cache / "drawings" / "trial.pt"
    own, mistaken = kept(path, lambda: [_trial_part(cache, mistaken) for mistaken in (False, True)])
    return Drawings(*own), Drawings(*mistaken)


def _trial_part(cache: Path, mistaken: bool) -> list[Tensor]:
    made: list[Picture] = []
    kinds, styles, things = [], [], []
    for place, one in enumerate(ALL_INDIVIDUALS):
        shown = _mistakable(one) if mistaken else [(one.kind, one.wears)]
        # Every individual in all styles; what it could be mistaken for in four that rotate.
        chosen = [(place + 3 * step) % len(STYLE_NAMES) for step in range(4)]
        for kind, wears in shown:
            for style in chosen if mistaken else range(len(STYLE_NAMES)):
                made.append(individuals.draw(cache, kind, wears, STYLES[STYLE_NAMES[style]]))
                kinds.append(SUBJECTS.index(kind))
                styles.append(style)
                things.append(worn(frozenset(placed.thing for placed in wears)))
    return [stacked(made), torch.tensor(kinds), torch.tensor(styles), torch.stack(things)]


def kept_out_of_kinds(drawings: Drawings) -> Tensor:
    """True for what the judge of kinds does not learn from, [n]: each kind in one style that rotates."""
    return drawings.style == drawings.kind % len(STYLE_NAMES)


def kept_out_of_styles(drawings: Drawings) -> Tensor:
    """True for what the judge of styles does not learn from, [n]: every fifth kind, the strangers, and
    what is in no style.
    """
    return (drawings.kind % 5 == 0) | (drawings.kind >= len(KINDS)) | (drawings.style == UNKNOWN)


def in_judged_styles(drawings: Drawings) -> Tensor:
    """True for drawings in a style in which samples of pairs or of content LoRAs are judged, [n]."""
    asked = torch.tensor([STYLE_NAMES.index(style) for style in JUDGED_STYLES])
    return torch.isin(drawings.style, asked)
