"""K-LoRA written down once more, slowly and from the paper alone: plain numbers, loops and sorted lists."""

from __future__ import annotations

import math
from dataclasses import dataclass

Matrix = list[list[float]]


@dataclass
class SlowLayer:
    content: Matrix
    style: Matrix
    rank_content: int = 1
    rank_style: int = 1


@dataclass
class SlowPlan:
    gamma: float
    top_k: list[int]
    content_score: list[float]
    style_score: list[float]
    #: [step][layer]: how much content lies above (positive) or below (negative) the style, relative.
    margins: list[list[float]]


def product(up: Matrix, down: Matrix, scale: float = 1.0) -> Matrix:
    """scale * up @ down."""
    columns = list(zip(*down, strict=True))
    return [
        [scale * math.fsum(a * b for a, b in zip(row, column, strict=True)) for column in columns]
        for row in up
    ]


def magnitudes(matrix: Matrix) -> list[float]:
    """|dW|, the largest first."""
    return sorted((abs(value) for row in matrix for value in row), reverse=True)


def slow_plan(
    layers: list[SlowLayer], steps: int, schedule: str, alpha: float, beta: float, top_k: str
) -> SlowPlan:
    """Scores, the paper's gamma, and the margins at t = i / (N - 1)."""
    contents, styles = ([magnitudes(one) for one in side] for side in _sides(layers))
    counts = [_count(top_k, layer, len(all_)) for layer, all_ in zip(layers, contents, strict=True)]
    s_c = [math.fsum(all_[:k]) for all_, k in zip(contents, counts, strict=True)]
    s_s = [math.fsum(all_[:k]) for all_, k in zip(styles, counts, strict=True)]
    gamma = math.fsum(math.fsum(one) for one in contents) / math.fsum(math.fsum(one) for one in styles)
    margins = []
    for step in range(steps):
        t = step / (steps - 1) if steps > 1 else 0.0
        scale = alpha * t + beta
        while schedule == "S*" and scale >= alpha:
            scale -= alpha
        margins.append([_margin(c, s * gamma * scale) for c, s in zip(s_c, s_s, strict=True)])
    return SlowPlan(gamma, counts, s_c, s_s, margins)


def _sides(layers: list[SlowLayer]) -> tuple[list[Matrix], list[Matrix]]:
    return [one.content for one in layers], [one.style for one in layers]


def _count(top_k: str, layer: SlowLayer, elements: int) -> int:
    if top_k == "rank":
        wanted = layer.rank_content * layer.rank_style
    elif top_k.endswith("%"):
        wanted = round(elements * float(top_k[:-1]) / 100)
    else:
        wanted = int(top_k)
    return min(max(wanted, 1), elements)


def _margin(content: float, style: float) -> float:
    return (content - style) / max(content, style, 1e-300)
