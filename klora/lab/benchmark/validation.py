"""Can the scores be trusted? Cases whose order is known beforehand, and what is noise."""

from __future__ import annotations

from dataclasses import dataclass

from klora.lab.benchmark import methods as table
from klora.lab.benchmark.results import Results

CONTENT, STYLE = "content only", "style only"


@dataclass(frozen=True)
class Check:
    """One thing that must hold if the scores mean what they say."""

    claim: str
    holds: bool
    detail: str


def checks(results: Results) -> list[Check]:
    """Every check whose methods were made."""
    found = _truth(results)
    if results.row(CONTENT) and results.row(STYLE):
        found += [_best_alone(results, CONTENT, "subject"), _best_alone(results, STYLE, "style")]
        found += [_poor(results, CONTENT, STYLE, "style"), _poor(results, STYLE, CONTENT, "subject")]
    return found


def _value(results: Results, name: str, figure: str) -> float:
    row = results.row(name)
    assert row is not None
    return row.figures[figure].value


def _truth(results: Results) -> list[Check]:
    truth = results.row(table.TRUTH)
    if truth is None:
        return []
    found = []
    for figure in ("harmonic_mean", "both", "harmonic_mean_probability"):
        others = {one.method.name: one.figures[figure].value for one in results.rows if one is not truth}
        best = max(others, key=others.__getitem__, default=None)
        if best is not None:
            value = truth.figures[figure].value
            detail = f"truth {value:.3f}, next {best} {others[best]:.3f}"
            label = figure.replace("_", " ")
            found.append(Check(f"truth has the highest {label}", value >= others[best], detail))
    nearest = min(
        (one for one in results.rows if one is not truth),
        key=lambda one: one.figures["distance"].value,
        default=None,
    )
    if nearest is not None:
        value, next_value = truth.figures["distance"].value, nearest.figures["distance"].value
        detail = f"truth {value:.3f}, next {nearest.method.name} {next_value:.3f}"
        found.append(Check("truth is nearest to itself", value <= next_value, detail))
    return found


def _best_alone(results: Results, name: str, figure: str) -> Check:
    """A LoRA alone does what it is for as well as anything does, but for noise."""
    made = {
        one.method.name: one.figures[figure].value
        for one in results.rows
        if not one.method.is_truth and one.method.name != name
    }
    best = max(made, key=made.__getitem__)
    margin = results.margin(figure) if results.noise else 0.0
    value = _value(results, name, figure)
    return Check(
        f"{name} has the best {figure}, but for noise",
        value >= made[best] - margin,
        f"{value:.3f}, best other {best} {made[best]:.3f}, noise {margin:.3f}",
    )


def _poor(results: Results, name: str, other: str, figure: str) -> Check:
    """A LoRA alone lacks what the other one is for."""
    value, others = _value(results, name, figure), _value(results, other, figure)
    return Check(
        f"{name} has a poor {figure}", value < others / 2, f"{value:.3f}, less than half of {others:.3f}"
    )
