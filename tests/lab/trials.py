"""What the judges are tried on, written out once more: this shares no code with the lessons that must not
show it.
"""

from __future__ import annotations

from collections.abc import Sequence

from klora.lab.world.individuals import INDIVIDUALS, Individual, Placed

Dressed = tuple[str, tuple[Placed, ...]]

#: With which others of its half an individual is tried: so many places further on, and around.
OFFSETS = (1, 4, 7, 11)

#: Places that are less apart than this, both across and down, are the same to a judge.
APART = 0.2


def mistakable(one: Individual) -> list[Dressed]:
    """What an individual could be mistaken for: its kind plain, its kind with what others wear, unless that
    is what it wears itself, and the kinds of the others with its own things.
    """
    (half,) = (half for half in INDIVIDUALS.values() if one.name in {each.name for each in half})
    place = [each.name for each in half].index(one.name)
    turned = half[place:] + half[:place]
    found: list[Dressed] = [(one.kind, ())]
    for offset in OFFSETS:
        other = turned[offset]
        found.append((other.kind, one.wears))
        if {placed.thing for placed in other.wears} != {placed.thing for placed in one.wears}:
            found.append((one.kind, other.wears))
    return found


def tried() -> list[Dressed]:
    """The individuals, and all that they could be mistaken for."""
    found: list[Dressed] = []
    for half in INDIVIDUALS.values():
        for one in half:
            found += [(one.kind, one.wears), *mistakable(one)]
    return found


def is_near(shown: Dressed, to: Dressed) -> bool:
    """Whether a judge could take one for the other: the same kind with the same things at the same places."""
    (kind, wears), (other_kind, other_wears) = shown, to
    if kind != other_kind or len(wears) != len(other_wears):
        return False
    for one in wears:
        same = [other for other in other_wears if other.thing == one.thing]
        if len(same) != 1:
            return False
        if abs(one.across - same[0].across) >= APART or abs(one.down - same[0].down) >= APART:
            return False
    return True


def leaks(shown: Sequence[Dressed]) -> list[Dressed]:
    """Those of the lessons that show what the judges are tried on, or nearly."""
    by_kind: dict[str, list[Dressed]] = {}
    for one in tried():
        by_kind.setdefault(one[0], []).append(one)
    return [one for one in shown if any(is_near(one, other) for other in by_kind.get(one[0], []))]
