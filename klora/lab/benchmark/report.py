"""The report of a benchmark: Markdown, JSON, and a contact sheet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from klora.lab import sheets
from klora.lab.benchmark.making import Maker, Sampling, Store, fingerprint
from klora.lab.benchmark.methods import Method
from klora.lab.benchmark.results import FIGURES, Result, Results
from klora.lab.benchmark.statistics import CONFIDENCE, DRAWS, Estimate
from klora.lab.benchmark.validation import checks
from klora.lab.pairs import Pair

MAIN = ("subject", "style", "harmonic_mean", "both", "distance")
"""Figures shown with their intervals."""
BRIEF = ("subject_probability", "style_probability", "harmonic_mean_probability")
COMPARED = ("harmonic_mean", "subject", "style", "both", "distance")
MOST_ROWS = 12
"""Rows of the contact sheet."""


@dataclass(frozen=True)
class Run:
    """What was run: enough to say it in the report and to run it again."""

    half: str
    pairs: list[Pair]
    methods: list[Method]
    seeds: tuple[int, ...]
    sampling: Sampling

    @property
    def subjects(self) -> list[str]:
        """The subjects, in order."""
        return list(dict.fromkeys(pair.subject for pair in self.pairs))

    @property
    def styles(self) -> list[str]:
        """The style LoRAs, in order."""
        return list(dict.fromkeys(pair.style.name for pair in self.pairs))


def _interval(found: Estimate, signed: bool = False) -> str:
    sign = "+" if signed else ""
    if found.low != found.low:
        return f"{found.value:{sign}.3f}"
    return f"{found.value:{sign}.3f} ({found.low:{sign}.3f} to {found.high:{sign}.3f})"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(lines)


def main_table(results: Results) -> str:
    """A row for each method."""
    head = ["method", *(FIGURES[name].label for name in (*MAIN, *BRIEF)), "processor seconds a picture"]
    rows = []
    for one in results.rows:
        figures = one.figures
        cells = [_interval(figures[name]) for name in MAIN] + [f"{figures[name].value:.3f}" for name in BRIEF]
        time = "" if one.method.is_truth else f"{figures['seconds'].value:.2f}"
        rows.append([one.method.name, *cells, time])
    return _markdown(head, rows)


def difference_table(results: Results) -> str:
    """Every method against the reference; bold where the interval excludes no difference."""
    rows = [_difference_row(one) for one in results.rows if one.differences]
    return _markdown(["method", *(FIGURES[name].label for name in COMPARED)], rows)


def _difference_row(one: Result) -> list[str]:
    cells = []
    for name in COMPARED:
        found = one.differences[name]
        text = _interval(found, signed=True)
        cells.append(f"**{text}**" if found.excludes_zero else text)
    return [one.method.name, *cells]


def validation_table(results: Results) -> str:
    """Every check of the scores, then the noise."""
    rows = [["yes" if one.holds else "**no**", one.claim, one.detail] for one in checks(results)]
    parts = [_markdown(["holds", "claim", "measured"], rows)] if rows else []
    if results.noise:
        head = ["method", *(FIGURES[name].label for name in COMPARED)]
        noise = [
            [name, *(_interval(one[figure], signed=True) for figure in COMPARED)]
            for name, one in results.noise.items()
        ]
        parts += [
            "Methods minus themselves with other seeds, between which there is no difference:",
            _markdown(head, noise),
            f"A difference of the harmonic mean below {results.margin('harmonic_mean'):.3f} is noise.",
        ]
    return "\n\n".join(parts)


def _about(run: Run) -> str:
    """What was measured, in one paragraph."""
    return (
        f"{run.half.capitalize()} half. Subjects ({len(run.subjects)}): {', '.join(run.subjects)}. Style "
        f"LoRAs ({len(run.styles)}): {', '.join(run.styles)}. Pairs with a true drawing: {len(run.pairs)}, "
        f"with seeds {run.seeds[0]} to {run.seeds[-1]} each; {run.sampling.steps} steps, "
        f"guidance {run.sampling.guidance:g}. Prompt: both trigger words, such as `{run.pairs[0].prompt}`. "
        f"In brackets: {CONFIDENCE:.0%} intervals, bootstrapped over subjects ({DRAWS:,} draws). Subject and "
        "style: share of pictures that the judge names right, and its mean probability. Harmonic mean: of "
        "subject and style. Smaller is better for distance and seconds; "
        f"the latter in batches of {len(run.seeds)}, LoRAs put in and taken out included."
    )


def markdown(run: Run, results: Results) -> str:
    """The whole report."""
    parts = [f"# Fusion on the {run.half} half", _about(run), main_table(results)]
    if results.reference:
        parts += [
            f"## Difference from: {results.reference}",
            "Paired; bold where the interval excludes 0.",
            difference_table(results),
        ]
    parts += ["## Are the scores to be trusted?", validation_table(results)]
    notes = [[one.name, one.note] for one in run.methods if one.note]
    if notes:
        parts += ["## Methods", _markdown(["method", "what it is"], notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_json(run: Run, results: Results) -> dict[str, Any]:
    """All figures as plain data, with what they were measured on."""

    def plain(estimates: dict[str, Estimate]) -> dict[str, Any]:
        return {name: one.as_json() for name, one in estimates.items()}

    return {
        "half": run.half,
        "subjects": run.subjects,
        "styles": run.styles,
        "pairs": [pair.name for pair in run.pairs],
        "seeds": list(run.seeds),
        "steps": run.sampling.steps,
        "guidance": run.sampling.guidance,
        "checkpoint": fingerprint(run.sampling.checkpoint),
        "reference": results.reference,
        "methods": [
            {
                "name": one.method.name,
                "weights": one.method.weights,
                "settings": one.method.settings,
                "figures": plain(one.figures),
                "differences": plain(one.differences),
            }
            for one in results.rows
        ],
        "noise": {name: plain(one) for name, one in results.noise.items()},
        "checks": [asdict(one) for one in checks(results)],
    }


def contact_sheet(run: Run, store: Store, path: Path) -> None:
    """The first seed of some pairs, spread over the subjects and styles, by every method."""
    maker = Maker(run.sampling)
    every = max(1, -(-len(run.pairs) // MOST_ROWS))
    # One further with each lap, or a step that divides the number of styles would show one style alone.
    laps = len(run.styles)
    places = sorted(
        {min(at + at // laps % laps, len(run.pairs) - 1) for at in range(0, len(run.pairs), every)}
    )
    shown = [run.pairs[place] for place in places]
    seed = run.seeds[:1]
    rows = [
        [
            (maker.true(pair, seed) if one.is_truth else store.get(pair, one, seed)).pictures[0]
            for one in run.methods
        ]
        for pair in shown
    ]
    names = [one.name for one in run.methods]
    sheet = sheets.labelled_sheet(
        rows, [pair.name.replace(" + ", "\n+ ") for pair in shown], names, enlarge=2
    )
    sheet.save(path)


def write(run: Run, results: Results, store: Store, folder: Path, table: Path | None = None) -> list[Path]:
    """Write ``HALF.md``, ``HALF.json`` and ``HALF.png``, and the Markdown to ``table`` too."""
    folder.mkdir(parents=True, exist_ok=True)
    text = markdown(run, results)
    paths = [folder / f"{run.half}.{end}" for end in ("md", "json", "png")]
    paths[0].write_text(text, encoding="utf-8")
    paths[1].write_text(json.dumps(as_json(run, results), indent=1) + "\n", encoding="utf-8")
    contact_sheet(run, store, paths[2])
    if table:
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(text, encoding="utf-8")
        paths.append(table)
    return paths
