"""A report and a ranking as plain text."""

from __future__ import annotations

from klora.report.compatibility import PRELIMINARY
from klora.report.contest import EVEN_FACTOR
from klora.report.pair_report import FileFacts, PairReport
from klora.report.ranking import Ranking


def report_lines(report: PairReport) -> list[tuple[str, str]]:
    """(what, how much), in the order in which they are read."""
    counts, told = report.counts, report.as_json()
    gamma = "" if report.plan.gamma is None else f", gamma {report.plan.gamma:.4g}"
    ratio = report.strength_ratio
    strength = "style is zero" if ratio is None else f"content / style {ratio:.3g}{gamma}"
    shares = told["shares"]
    return [
        ("content", _facts(report.content)),
        ("style", _facts(report.style)),
        ("base model", report.base_model),
        ("shared layers", f"{counts.shared_attention} of attention, {counts.shared_other} others"),
        ("alone", f"content {counts.content_alone} layers, style {counts.style_alone}"),
        ("strength", strength),
        (
            "layer-steps",
            f"content {shares['content']:.1%}, style {shares['style']:.1%} "
            f"(rule {shares['rule']}, {shares['steps']} steps, {shares['flips']} changes)",
        ),
        ("same layers", _contest(report)),
        *_direction_lines(report),
        ("compatibility", _index(report)),
        ("evidence", f"{PRELIMINARY}."),
        ("verdict", report.verdict.sentence),
        ("remedy", report.verdict.remedy),
    ]


def report_text(report: PairReport) -> str:
    """The report as a table of two columns."""
    return _columns(report_lines(report))


def ranking_text(ranking: Ranking) -> str:
    """One line for each pair, the best first, and below it what was left out."""
    head = [("index", "strength", "directions", "pair")]
    rows = [
        (
            f"{pair.compatibility.index:.0f}",
            f"{pair.compatibility.strength:.2f}",
            f"{pair.compatibility.directions:.2f}",
            " + ".join(pair.names),
        )
        for pair in ranking.pairs
    ]
    lines = ["  ".join(f"{cell:>10}" for cell in row[:3]) + f"  {row[3]}" for row in [*head, *rows]]
    lines.append(f"The index is {PRELIMINARY}.")
    return "\n".join([*lines, *(f"left out: {sentence}" for sentence in ranking.left_out)])


def _columns(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _facts(facts: FileFacts) -> str:
    rank = "" if facts.ranks is None else f" rank {facts.ranks[0]}"
    if facts.ranks is not None and facts.ranks[0] != facts.ranks[1]:
        rank += f" to {facts.ranks[1]}"
    targets = f" ({' + '.join(facts.targets)})" if facts.targets else ""
    return f"{facts.name}: {' + '.join(facts.kinds)}{rank}{targets}"


def _contest(report: PairReport) -> str:
    parts = report.contest.parts()
    told = ", ".join(f"{name} in {part:.0%}" for name, part in parts.items())
    median = report.contest.quantiles["50%"]
    middle = "" if median is None else f"; half of the layers above {2**median:.3g} times"
    return f"{told} of the layers (by {report.contest.measure}, even: within {EVEN_FACTOR:g} times){middle}"


def _direction_lines(report: PairReport) -> list[tuple[str, str]]:
    told = report.as_json()["directions"]
    lines = []
    for name, title in (("rows", "inputs read"), ("columns", "outputs written")):
        both = told[name]
        content, style = both["content_in_style"], both["style_in_content"]
        lines.append(
            (
                title,
                f"{content['measured']:.2%} of content in style's directions (chance "
                f"{content['chance']:.2%}), {style['measured']:.2%} of style in content's (chance "
                f"{style['chance']:.2%})",
            )
        )
    return [*lines, ("alignment", f"{told['alignment']:+.4f} (1 the same, 0 nothing in common, -1 opposite)")]


def _index(report: PairReport) -> str:
    parts = report.compatibility
    return (
        f"{parts.index:.0f} of 100 = strength {parts.strength:.2f} x directions {parts.directions:.2f} "
        f"x layers {parts.layers:.2f}"
    )
