"""What decides in the paper's ablations instead of the rule: a coin, or time alone.

Each is a rule whose decisions are a table that is known before the first step; a fusion takes it in place of
its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from klora.schedule import Rule

Table = NDArray[np.bool_]
"""Whether content wins, [steps, layers]."""


@dataclass(frozen=True, eq=False)
class TableRule(Rule):
    """A rule that reads its decisions from a table of the steps of one sampling."""

    table: Table

    def at_step(self, step: float, steps: int) -> Table:
        """The row of a step, [layers]."""
        if steps != len(self.table):
            raise ValueError(f"a table of {len(self.table)} steps was asked for step {step} of {steps}")
        row: Table = self.table[int(step)]
        return row


def with_table(rule: Rule, table: Table) -> TableRule:
    """The rule with its decisions replaced."""
    return TableRule(**{one.name: getattr(rule, one.name) for one in fields(rule)}, table=table)


def coin(planned: Table, chance: np.random.Generator) -> Table:
    """A fair coin for each layer and step."""
    table: Table = chance.random(planned.shape) < 0.5
    return table


def shuffled_layers(planned: Table, chance: np.random.Generator) -> Table:
    """The planned decisions, dealt to the layers by lot: the same shares, as few changes, no scores."""
    dealt: Table = planned[:, chance.permutation(planned.shape[1])]
    return dealt


def half_time(planned: Table, _chance: np.random.Generator) -> Table:
    """Content in the first half of the steps, then style, in all layers."""
    return _content_until(planned, len(planned) / 2)


def same_share(planned: Table, _chance: np.random.Generator) -> Table:
    """Content until it has had the share of the steps that it has of the planned layer-steps, then style."""
    return _content_until(planned, len(planned) * float(planned.mean()))


def _content_until(planned: Table, step: float) -> Table:
    table: Table = np.zeros_like(planned)
    table[: round(step)] = True
    return table


CHOICES: dict[str, Callable[[Table, np.random.Generator], Table]] = {
    "coin": coin,
    "shuffled layers": shuffled_layers,
    "half time": half_time,
    "same share": same_share,
}


def replaced(rule: Rule, choice: str, steps: int, seed: int) -> TableRule:
    """The rule with its decisions for a sampling of ``steps`` steps replaced as ``choice`` says."""
    planned = rule.plan(steps).content_wins
    return with_table(rule, CHOICES[choice](planned, np.random.default_rng(seed)))
