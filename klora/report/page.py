"""A report and a ranking as one self-contained HTML file, which needs no network and follows the theme."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from io import BytesIO

from klora.report.compatibility import PRELIMINARY
from klora.report.pair_report import PairReport
from klora.report.ranking import Ranking
from klora.report.text import report_lines

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .35rem .7rem .35rem 0; overflow-wrap: anywhere; }
th { min-width: 7.5em; }
tr + tr > * { border-top: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
img { max-width: 100%; height: auto; background: white; }
.index { font-size: 2.5rem; font-weight: 700; }
"""


def report_page(report: PairReport) -> str:
    """The report with its plan as a picture."""
    names = f"{report.content.name} + {report.style.name}"
    body = [
        f"<h1>{_safe(names)}</h1>",
        f'<p><span class="index">{report.compatibility.index:.0f}</span> of 100, {_safe(PRELIMINARY)}.</p>',
        f"<p><strong>{_safe(report.verdict.sentence)}</strong> {_safe(report.verdict.remedy)}</p>",
        _table([], report_lines(report)),
        f'<img alt="Plan: layers by steps" src="data:image/png;base64,{_plan_picture(report)}">',
    ]
    return _page(names, body)


def ranking_page(ranking: Ranking) -> str:
    """The table of every pair."""
    rows = [
        (
            f"{pair.compatibility.index:.0f}",
            f"{pair.compatibility.strength:.2f}",
            f"{pair.compatibility.directions:.2f}",
            *pair.names,
        )
        for pair in ranking.pairs
    ]
    body = [
        "<h1>Pairs, the best first</h1>",
        f"<p>The index is {_safe(PRELIMINARY)}.</p>",
        _table(("index", "strength", "directions", "first", "second"), rows),
        *(f"<p>Left out: {_safe(sentence)}</p>" for sentence in ranking.left_out),
    ]
    return _page("Pairs of LoRAs", body)


def _page(title: str, body: Iterable[str]) -> str:
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{_safe(title)}</title><style>{_STYLE}</style></head>"
    )
    return f"{head}\n<body>\n{chr(10).join(body)}\n</body></html>\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"<tr>{''.join(f'<th>{_safe(cell)}</th>' for cell in head)}</tr>"] if head else []
    for row in rows:
        cells = "".join(f"<td>{_safe(cell)}</td>" for cell in row[1:])
        lines.append(f"<tr><th>{_safe(row[0])}</th>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _plan_picture(report: PairReport) -> str:
    from klora.pictures.heat_map import save_plan  # matplotlib takes a second to import

    png = BytesIO()
    save_plan(report.plan, png)
    return base64.b64encode(png.getvalue()).decode()


def _safe(text: str) -> str:
    """Names come from strangers."""
    return html.escape(text)
