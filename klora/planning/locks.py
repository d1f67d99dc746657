"""Locks by block: in some blocks the user decides, whatever the rule says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from klora.errors import SettingsError
from klora.files.blocks import block_of_layer
from klora.options import Values
from klora.options.locks import Lock, parse_locks
from klora.rules import Rule
from klora.rules.k_lora import winner_and_loser

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LockedLayers:
    """``places`` among the decided layers, ``[locked]``, and their ``shares``, ``[locked, 2]``."""

    places: NDArray[np.intp]
    shares: Numbers

    def over(self, shares: Numbers) -> Numbers:
        """``shares`` of the decided layers, ``[layers, 2]``, with the locked ones put in."""
        locked: Numbers = shares.copy()
        locked[self.places] = self.shares
        return locked


def locked_layers(rule: Rule, values: Values, layers: Sequence[str]) -> LockedLayers | None:
    """What the setting ``locks`` fixes among the decided ``layers``; ``None`` if nothing.

    A later lock wins over an earlier one. C and S give the layer to one LoRA as if it had won it by the rule.
    Raises `SettingsError` for blocks of a group that none of the layers has.
    """
    locks = parse_locks(str(values["locks"]))
    if not locks:
        return None
    blocks = [block_of_layer(layer) for layer in layers]
    _refuse_other_groups(locks, {block.group for block in blocks if block is not None})
    chosen: dict[int, str] = {}
    for lock in locks:
        for place, block in enumerate(blocks):
            if block is not None and block.group == lock.group and lock.first <= block.number <= lock.last:
                chosen[place] = lock.choice
    rows = _rows(rule, values)
    fixed = {place: rows[choice] for place, choice in chosen.items() if choice in rows}
    if not fixed:
        return None
    return LockedLayers(np.array(list(fixed), dtype=np.intp), np.array(list(fixed.values())))


def _rows(rule: Rule, values: Values) -> dict[str, Numbers]:
    """Choice -> shares of content and style; ``auto`` is the rule's."""
    has_keep = any(setting.name == "keep" for setting in rule.settings)
    keep = float(values["keep"]) if has_keep else 0.0
    won = winner_and_loser(np.array([True, False]), keep, float(values["balance"]))
    return {"C": won[0], "S": won[1], "both": np.ones(2), "none": np.zeros(2)}


def _refuse_other_groups(locks: Sequence[Lock], groups: set[str]) -> None:
    for lock in locks:
        if groups and lock.group not in groups:
            known = ", ".join(sorted(groups))
            raise SettingsError(
                f"K-LoRA: locks is {lock}, but these LoRAs have no such block; theirs are called {known}."
            )
