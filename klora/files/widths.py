"""Wrong input or output sizes, found without the model: a block has one width, in which its layers agree.

A LoRA whose layer has 300 inputs where its neighbours have 320 is broken, whatever the model. The width of a
block is voted for by its layers, so that small test models pass as well as real ones; only a tie is decided
by the sizes of the real ones. A file that is consistent but made for another size is caught by the host,
against the weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from klora.files.canonical import GRAMMARS
from klora.files.models import BaseModel


@dataclass(frozen=True)
class Side:
    """A side of a layer whose size is ``multiple`` times a width that ``group`` shares."""

    layer: str
    side: str
    group: str
    size: int
    multiple: float


def wrong_size(shapes: Mapping[str, tuple[int, ...]], model: BaseModel) -> tuple[str, str] | None:
    """The first layer that is out of step with its block, and how; ``None`` if all agree.

    ``shapes`` are those of dW by canonical name; ``model`` declares the multiples.
    """
    sides = [side for name, shape in shapes.items() for side in _sides(name, shape, model)]
    votes: dict[str, Counter[float]] = {}
    for one in sides:
        votes.setdefault(one.group, Counter())[round(one.size / one.multiple, 3)] += 1
    widths = {group: _elected(count, model.widths.get(group, ())) for group, count in votes.items()}
    for one in sides:
        width = widths[one.group]
        if width is not None and one.size != round(width * one.multiple, 2):
            return (
                one.layer,
                f"wrong {one.side} size {one.size} where the rest of the file says {width * one.multiple:g}",
            )
    return None


def _elected(votes: Counter[float], real: tuple[int, ...]) -> float | None:
    """The width with most votes; in a tie the real model's, or none if that is not in question."""
    most = max(votes.values())
    leaders = [width for width, count in votes.items() if count == most]
    if len(leaders) > 1:
        leaders = [width for width in leaders if width in real]
    return leaders[0] if len(leaders) == 1 else None


def _sides(name: str, shape: tuple[int, ...], model: BaseModel) -> Iterator[Side]:
    found = GRAMMARS[model.name].find(name)
    if found is None:
        return
    block, leaf = found.layer.block, found.layer.leaf
    for side, size, multiple in (("output", shape[0], leaf.out), ("input", shape[1], leaf.inside)):
        if isinstance(multiple, str):
            yield Side(name, side, multiple, size, 1)
        elif multiple is not None:
            yield Side(name, side, block.width, size, multiple)
