"""From a path to a layer of a model and back, by the tables that the models declare."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from klora.files.models.model import BaseModel, Layer

#: Longer than any layer's name; bounds the work on a hostile one.
_LONGEST = 300

_SLOT = re.compile(r"0|[1-9]\d{0,2}")

Numbers = tuple[int | None, ...]


@dataclass(frozen=True)
class Found:
    """A layer of a model, and the numbers that stand for ``#`` in its name."""

    layer: Layer
    numbers: tuple[int, ...]

    @property
    def name(self) -> str:
        """The canonical name."""
        return filled(self.layer.pattern, self.numbers)


@dataclass(frozen=True)
class _Rule:
    """A spelling of ``layer``; ``numbers`` are those that it has to have, ``None`` for any."""

    numbers: Numbers
    layer: Layer

    def match(self, numbers: Numbers) -> tuple[int, ...] | None:
        if any(wanted is not None and wanted != number for wanted, number in self._beside(numbers)):
            return None
        return tuple(
            number for wanted, number in self._beside(numbers) if wanted is None and number is not None
        )

    def _beside(self, numbers: Numbers) -> Iterable[tuple[int | None, int | None]]:
        return zip(self.numbers, numbers, strict=True)


#: The spellings of a model's layers by their signature.
_Rules = dict[str, list[_Rule]]


def _rules(model: BaseModel, separator: str) -> _Rules:
    rules: _Rules = {}
    for layer in model.layers():
        for spelling in layer.spellings():
            signature, numbers = _signature(spelling.replace(".", separator), separator)
            rules.setdefault(signature, []).append(_Rule(numbers, layer))
    return rules


def _find(rules: _Rules, path: str, separator: str) -> Found | None:
    if len(path) > _LONGEST:
        return None
    signature, numbers = _signature(path, separator)
    for rule in rules.get(signature, ()):
        slots = rule.match(numbers)
        if slots is not None:
            return Found(rule.layer, slots)
    return None


class Grammar:
    """The names that one model's layers have, in every spelling, dotted and flat."""

    def __init__(self, model: BaseModel) -> None:
        self.model = model

    # Each table when it is first needed: a file is in one dialect, and most models are never met.

    @cached_property
    def _dotted(self) -> _Rules:
        return _rules(self.model, ".")

    @cached_property
    def _flat(self) -> _Rules:
        return _rules(self.model, "_")

    @cached_property
    def _natives(self) -> dict[str, str]:
        natives: dict[str, str] = {}
        for layer in self.model.layers():
            if layer.native is not None:
                natives[layer.pattern] = layer.native
                for part in part_patterns(layer):
                    natives.setdefault(part, layer.native)
        return natives

    def find(self, path: str) -> Found | None:
        """The layer at a dotted path in any of the model's spellings."""
        return _find(self._dotted, path, ".")

    def find_flat(self, path: str) -> Found | None:
        """The layer at a path with underscores for dots."""
        return _find(self._flat, path, "_")

    def native(self, canonical: str) -> str | None:
        """The path in the model's own code; that of the fused layer for a part of one."""
        found = self.find(canonical)
        if found is None or found.name != canonical or found.layer.pattern not in self._natives:
            return None
        return filled(self._natives[found.layer.pattern], found.numbers)


def part_patterns(layer: Layer) -> tuple[str, ...]:
    """The canonical patterns of the parts of a fused layer."""
    stem = layer.block.name
    return tuple(f"{stem}.{part}" if stem else part for part, _ in layer.leaf.parts)


def filled(pattern: str, numbers: Iterable[int]) -> str:
    """The pattern with numbers in place of ``#``."""
    pieces = pattern.split("#")
    return pieces[0] + "".join(f"{number}{piece}" for number, piece in zip(numbers, pieces[1:], strict=True))


@lru_cache(maxsize=65536)
def _signature(path: str, separator: str) -> tuple[str, Numbers]:
    """The path with ``#`` for each number, and the numbers; ``None`` for a ``#`` that was there."""
    words, numbers = path.split(separator), list[int | None]()
    for place, word in enumerate(words):
        if word == "#" or _SLOT.fullmatch(word):
            words[place] = "#"
            numbers.append(None if word == "#" else int(word))
    return separator.join(words), tuple(numbers)


# --- The order of a forward pass, over all models -------------------------------------------------


class Order:
    """Places of layers in a forward pass, the same for every model that has them.

    The models' orders are merged: what a model adds is put behind what it comes after in that model. Where
    two models call the same layers in different orders, that of the first model holds.
    """

    def __init__(self, models: Iterable[BaseModel]) -> None:
        rows: list[str] = []
        leaves: dict[str, list[str]] = {}
        for model in models:
            _merge(rows, (row for layer in model.layers() for row, _ in [_row(layer)]))
            for block in model.blocks:
                if "#" in block.name:
                    _merge(leaves.setdefault(block.name, []), (leaf.name for leaf in block.leaves))
        self._rows = {row: place for place, row in enumerate(rows)}
        self._leaves = {
            block: {name: place for place, name in enumerate(names)} for block, names in leaves.items()
        }

    def place(self, found: Found) -> tuple[int, ...]:
        """Sorts like time."""
        row, leaf = _row(found.layer)
        if leaf is None:
            return (self._rows[row], *found.numbers)
        depth = row.count("#")
        inside = (self._leaves[row][leaf], *found.numbers[depth:])
        return (self._rows[row], *found.numbers[:depth], *inside)


def _row(layer: Layer) -> tuple[str, str | None]:
    """A layer that is there once is a row of its own; of equal blocks in a row it is a leaf."""
    return (layer.block.name, layer.leaf.name) if "#" in layer.block.name else (layer.pattern, None)


def _merge(merged: list[str], added: Iterator[str]) -> None:
    place = 0
    for one in dict.fromkeys(added):
        if one in merged:
            place = merged.index(one) + 1
        else:
            merged.insert(place, one)
            place += 1
