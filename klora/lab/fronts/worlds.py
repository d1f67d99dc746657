"""One picture of both worlds: the fronts of what a reader knows by name, from the written reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from klora.errors import KloraError
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


def picture(reports: Sequence[Path], path: Path) -> None:
    """Draw the fronts of each report (``STEM.json`` of a benchmark) in a panel of its own.

    Raises `KloraError` for a report that is missing.
    """
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(5.2 * len(reports), 5.6), layout="constrained")
    panels = drawn.subplots(1, len(reports), squeeze=False, sharey=True)[0]
    for panel, report in zip(panels, reports, strict=True):
        told = _read(report)
        chosen = {one["name"]: one["balance"] for one in told["methods"]}
        for number, (method, label) in enumerate(SHOWN.items()):
            if method in told["fronts"]:
                points = told["fronts"][method]
                place = points["balances"].index(chosen[method])
                draw_front(panel, points["style"], points["identity"], place, label, f"C{number}")
        world, half = report.stem.split("-")[:2]
        panel.set(title=f"{world}, {half} half", ylabel="")
    panels[0].set(ylabel="subject right, share of pictures")
    handles, labels = panels[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    drawn.savefig(path, dpi=100)


def _read(report: Path) -> Any:
    if not report.exists():
        raise KloraError(
            f"there is no {report.name} in {report.parent}; run the benchmark of this world first."
        )
    return json.loads(report.read_text(encoding="utf-8"))
