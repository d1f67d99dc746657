"""From scores to figures: each method's with their intervals, differences from a reference, and the noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from klora.lab.benchmark import methods as table
from klora.lab.benchmark.scoring import Scored
from klora.lab.benchmark.statistics import (
    Estimate,
    Numbers,
    Statistic,
    by_subject,
    difference,
    estimate,
    first,
    harmonic_mean,
    resamples,
)
from klora.lab.pairs import Pair


@dataclass(frozen=True)
class Figure:
    """One column of the table: a statistic of the means of some measures."""

    name: str
    label: str
    measures: tuple[str, ...]
    statistic: Statistic = first


FIGURES: dict[str, Figure] = {
    figure.name: figure
    for figure in (
        Figure("subject", "subject", ("subject",)),
        Figure("style", "style", ("style",)),
        Figure("harmonic_mean", "harmonic mean", ("subject", "style"), harmonic_mean),
        Figure("both", "both at once", ("both",)),
        Figure("subject_probability", "subject, probability", ("subject_probability",)),
        Figure("style_probability", "style, probability", ("style_probability",)),
        Figure(
            "harmonic_mean_probability",
            "harmonic mean, probability",
            ("subject_probability", "style_probability"),
            harmonic_mean,
        ),
        Figure("distance", "distance to the truth", ("distance",)),
        Figure("seconds", "processor seconds", ("seconds",)),
    )
}


@dataclass(frozen=True)
class Result:
    """All figures of one method; ``differences`` from the reference are paired."""

    method: table.Method
    figures: dict[str, Estimate]
    differences: dict[str, Estimate]


@dataclass(frozen=True)
class Results:
    """The outcome of a benchmark."""

    rows: list[Result]
    reference: str | None
    noise: dict[str, dict[str, Estimate]]
    """Differences between a method and itself with other seeds, for each that was made twice."""

    def row(self, name: str) -> Result | None:
        """The result of a method, if it was made."""
        return next((one for one in self.rows if one.method.name == name), None)

    def margin(self, figure: str) -> float:
        """Half the width of the widest interval of no difference: noise. NaN if nothing was made twice."""
        widths = [one[figure].high - one[figure].low for one in self.noise.values()]
        return max(widths, default=math.nan) / 2


def _columns(scored: Scored, figure: Figure, subjects: Sequence[str]) -> Numbers:
    """Means [subjects, measures] of a figure's measures."""
    return np.stack([by_subject(scored.values[name], subjects) for name in figure.measures], axis=1)


def differences(
    one: Scored, other: Scored, subjects: Sequence[str], drawn: NDArray[np.int64]
) -> dict[str, Estimate]:
    """Every figure of one method minus the other's."""
    return {
        figure.name: estimate(
            np.concatenate([_columns(one, figure, subjects), _columns(other, figure, subjects)], axis=1),
            difference(figure.statistic),
            drawn,
        )
        for figure in FIGURES.values()
    }


def reference_of(names: Sequence[str]) -> str | None:
    """What methods are compared with: adding as well as it can be done, else adding as people do."""
    return next((name for name in (table.BEST, "added 1+1") if name in names), None)


def evaluate(scored: Sequence[Scored], pairs: Sequence[Pair]) -> Results:
    """All figures, differences and the noise."""
    subjects = [pair.subject for pair in pairs]
    drawn = resamples(len(set(subjects)))
    by_name = {one.method.name: one for one in scored}
    reference = reference_of(list(by_name))
    rows = []
    for one in scored:
        figures = {
            name: estimate(_columns(one, figure, subjects), figure.statistic, drawn)
            for name, figure in FIGURES.items()
        }
        compared = reference is not None and not one.method.is_truth and one.method.name != reference
        against = differences(one, by_name[reference], subjects, drawn) if compared and reference else {}
        rows.append(Result(one.method, figures, against))
    noise = {
        name: differences(by_name[name], by_name[table.again(name)], subjects, drawn)
        for name in table.MADE_TWICE
        if name in by_name and table.again(name) in by_name
    }
    return Results(rows, reference, noise)
