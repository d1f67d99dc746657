"""One picture of both worlds: the fronts of what a reader knows by name, from the written reports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klora.errors import KloraError
from klora.files.writing import check_place, write_with
from klora.lab.fronts.methods import DEFAULT
from klora.lab.fronts.report import draw_front

SHOWN: dict[str, str] = {
    DEFAULT: "K-LoRA, balanced: what a new user has",
    "weights guidance=none": "added, but not on the negative side",
    "weights": "added",
    "K-LoRA": "K-LoRA S (published at balance 0)",
    "K-LoRA schedule=S*": "K-LoRA S* (published at balance 0)",
}
"""Methods that are drawn where a report has them, and what a reader calls them."""
ENDINGS: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".webp")
"""What the picture's name may end in."""


@dataclass(frozen=True)
class Drawn:
    """A front as a report has it: shares of pictures by balance, and the place of the chosen balance."""

    style: list[float]
    identity: list[float]
    place: int


def picture(reports: Sequence[Path], path: Path) -> None:
    """Draw the fronts of each report (``STEM.json`` of a benchmark) in a panel of its own.

    Raises `KloraError` for a report that is missing or damaged, and for a path that no picture can be at.
    """
    if path.suffix.lower() not in ENDINGS:
        raise KloraError(f"{path} has no ending of a picture; write one of: {', '.join(ENDINGS)}.")
    check_place(path)
    panels = {report: _read(report) for report in reports}
    write_with(path, lambda draft: _draw(panels, draft))


def _draw(reports: Mapping[Path, Mapping[str, Drawn]], path: Path) -> None:
    """Draw the fronts of each report, by the names of their methods."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(5.2 * len(reports), 5.6), layout="constrained")
    panels = drawn.subplots(1, len(reports), squeeze=False, sharey=True)[0]
    for panel, (report, fronts) in zip(panels, reports.items(), strict=True):
        for number, (method, label) in enumerate(SHOWN.items()):
            if method in fronts:
                one = fronts[method]
                draw_front(panel, one.style, one.identity, one.place, label, f"C{number}")
        world, half = report.stem.split("-")[:2]
        panel.set(title=f"{world}, {half} half", ylabel="")
    panels[0].set(ylabel="subject right, share of pictures")
    handles, labels = panels[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    drawn.savefig(path, dpi=100)


def _read(report: Path) -> dict[str, Drawn]:
    """The fronts of a report by method, those that are shown."""
    if not report.exists():
        raise KloraError(
            f"there is no {report.name} in {report.parent}; run the benchmark of this world first."
        )
    try:
        told = json.loads(report.read_text(encoding="utf-8"))
        chosen = {one["name"]: one["balance"] for one in told["methods"]}
        fronts = told["fronts"]
        return {method: _front(fronts[method], chosen[method]) for method in SHOWN if method in fronts}
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise KloraError(
            f"{report.name} in {report.parent} is damaged; run the benchmark of this world again."
        ) from error


def _front(points: Mapping[str, Any], balance: float) -> Drawn:
    balances, style, identity = (
        [float(one) for one in points[name]] for name in ("balances", "style", "identity")
    )
    if not len(balances) == len(style) == len(identity):
        raise ValueError("a point of a front has a balance, a style and an identity")
    return Drawn(style, identity, balances.index(balance))
