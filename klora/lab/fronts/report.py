"""The report of fronts: a table, the differences from what must be beaten, plain data, and the picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from klora.lab.fronts.methods import ADDED, AS_DEFAULT, PLAINLY_ADDED, PUBLISHED
from klora.lab.fronts.statistics import (
    Estimate,
    Front,
    area_of,
    best_balance,
    figure,
    measure_at,
    paired,
)

AT_BALANCE: tuple[str, ...] = ("harmonic", "both", "identity", "style", "kind", "distance")
_LABELS = {**AS_DEFAULT, **PLAINLY_ADDED, **PUBLISHED}
"""Methods that are also shown at balance 0, and what they are called there."""
COMPARED: tuple[str, ...] = ("area", "harmonic", "both", "distance")


@dataclass(frozen=True)
class Row:
    """All figures of a method at its chosen balance; ``against`` by the name of what it is compared with."""

    method: str
    balance: float
    figures: dict[str, Estimate]
    against: dict[str, dict[str, Estimate]]


def chosen_balances(fronts: Sequence[Front]) -> dict[str, float]:
    """The balance of each method with the best harmonic mean, to be chosen on the development half."""
    return {front.method: best_balance(front) for front in fronts}


def with_originals(fronts: Sequence[Front]) -> list[Front]:
    """The fronts, and once more those that are also shown as they are published, under their labels, where
    balance 0 was run.
    """
    shown = [front for front in fronts if front.method in _LABELS and 0 in front.balances]
    return [*fronts, *(replace(front, method=_LABELS[front.method]) for front in shown)]


def with_zeros(balances: Mapping[str, float]) -> dict[str, float]:
    """Chosen balances, and 0 for what is shown as it is published."""
    return {**balances, **dict.fromkeys(_LABELS.values(), 0.0)}


def best_added(fronts: Sequence[Front], balances: Mapping[str, float]) -> str | None:
    """The way of adding, LoRAs in both passes, with the best harmonic mean: what must be beaten."""
    added = [
        front for front in fronts if front.method.split()[0] == ADDED and "guidance=" not in front.method
    ]
    reached = {
        front.method: float(measure_at(front, "harmonic", balances[front.method])(front.flat.mean(axis=0)))
        for front in added
    }
    return max(reached, key=reached.__getitem__, default=None)


def rows(fronts: Sequence[Front], balances: Mapping[str, float], references: Sequence[str]) -> list[Row]:
    """A row for each method, compared with the methods named by ``references``."""
    by_name = {front.method: front for front in fronts}
    made = []
    for front in fronts:
        balance = balances[front.method]
        figures = {name: figure(front, _statistic(front, name, balance)) for name in ("area", *AT_BALANCE)}
        against = {
            name: {
                measure: paired(
                    front,
                    _statistic(front, measure, balance),
                    by_name[name],
                    _statistic(by_name[name], measure, balances[name]),
                )
                for measure in COMPARED
            }
            for name in references
            if name in by_name and name != front.method
        }
        made.append(Row(front.method, balance, figures, against))
    return made


def _statistic(front: Front, name: str, balance: float) -> Any:
    return area_of(front) if name == "area" else measure_at(front, name, balance)


def interval(found: Estimate, signed: bool = False) -> str:
    """``0.731 (0.650 to 0.802)``."""
    sign = "+" if signed else ""
    return f"{found.value:{sign}.3f} ({found.low:{sign}.3f} to {found.high:{sign}.3f})"


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *body)]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(lines)


def table(made: Sequence[Row]) -> str:
    """Figures of every method, best harmonic mean first."""
    ordered = sorted(made, key=lambda row: -row.figures["harmonic"].value)
    shown = ("area", "harmonic", "both")
    brief = ("identity", "style", "kind", "distance")
    body = [
        [
            row.method,
            f"{row.balance:g}",
            *(interval(row.figures[name]) for name in shown),
            *(f"{row.figures[name].value:.3f}" for name in brief),
        ]
        for row in ordered
    ]
    return markdown(["method", "balance", *shown, *brief], body)


def difference_table(made: Sequence[Row], reference: str) -> str:
    """Paired differences from one method; bold where the interval excludes 0."""
    body = []
    for row in sorted(made, key=lambda row: -row.figures["harmonic"].value):
        if reference in row.against:
            cells = [(interval(row.against[reference][name], True), name) for name in COMPARED]
            body.append(
                [
                    row.method,
                    *(
                        f"**{text}**" if row.against[reference][name].excludes_zero else text
                        for text, name in cells
                    ),
                ]
            )
    return markdown(["method", *COMPARED], body)


def as_data(made: Sequence[Row], fronts: Sequence[Front]) -> dict[str, Any]:
    """Everything as plain data."""
    return {
        "methods": [
            {
                "name": row.method,
                "balance": row.balance,
                "figures": {name: one.as_json() for name, one in row.figures.items()},
                "against": {
                    name: {measure: one.as_json() for measure, one in found.items()}
                    for name, found in row.against.items()
                },
            }
            for row in made
        ],
        "fronts": {
            front.method: {
                "balances": front.balances,
                **{name: [round(float(one), 4) for one in front.mean(name)] for name in front.measures},
            }
            for front in fronts
        },
    }


def picture(fronts: Mapping[str, Front], balances: Mapping[str, float], path: Path, title: str = "") -> None:
    """Identity against style for some fronts by their labels; a ring marks the chosen balance."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = drawn.subplots()
    for number, (label, front) in enumerate(fronts.items()):
        place = front.balances.index(balances[front.method])
        draw_front(axes, front.mean("style"), front.mean("identity"), place, label, f"C{number}")
    axes.set(ylabel="subject right", title=title)
    axes.legend(fontsize=8)
    drawn.savefig(path, dpi=110)


def draw_front(
    axes: Any, style: Sequence[float], identity: Sequence[float], place: int, label: str, colour: str
) -> None:
    """One front on matplotlib's axes; a ring marks the point at ``place``."""
    axes.plot(style, identity, marker=".", label=label, color=colour)
    axes.plot(style[place], identity[place], "o", ms=11, mfc="none", mec=colour, mew=1.6)
    axes.set(xlim=(-0.02, 1.03), ylim=(-0.02, 1.03), xlabel="style right")
    axes.grid(alpha=0.3)


def with_ending(stem: Path, end: str) -> Path:
    """A report's file; what follows a point in ``stem`` may be a part of the guidance."""
    return stem.with_name(stem.name + end)


def write(
    made: Sequence[Row], fronts: Sequence[Front], references: Sequence[str], title: str, stem: Path
) -> list[Path]:
    """Write ``STEM.md``, ``STEM.json`` and ``STEM.png``."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    parts = [f"# {title}", table(made)]
    for name in references:
        parts += [f"## Difference from: {name}", difference_table(made, name)]
    paths = [with_ending(stem, end) for end in (".md", ".json", ".png")]
    paths[0].write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    paths[1].write_text(json.dumps(as_data(made, fronts), indent=1) + "\n", encoding="utf-8")
    by_name = {front.method: front for front in fronts}
    best = sorted(made, key=lambda row: -row.figures["harmonic"].value)[:3]
    shown = dict.fromkeys([*references, *(row.method for row in best)])
    picture(
        {name: by_name[name] for name in shown if name in by_name},
        {row.method: row.balance for row in made},
        paths[2],
        title,
    )
    return paths
