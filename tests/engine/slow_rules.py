"""The rules written down once more, from their sources alone: one layer at a time, in plain Python.

``Numbers`` of a layer are what two LoRAs weigh there. Each function returns the pair (share of content, share
of style) at step ``step`` of ``steps``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

Pair = tuple[float, float]


@dataclass(frozen=True)
class Layer:
    top_k: Pair
    total: Pair
    energy: Pair


def progress(step: int, steps: int) -> float:
    return step / (steps - 1) if steps > 1 else 0.0


def balance_factor(balance: float) -> float:
    """exp(2 artanh(balance))."""
    if balance == 1:
        return math.inf
    return 0.0 if balance == -1 else math.exp(2 * math.atanh(balance))


def bonus(schedule: str, alpha: float, beta: float, t: float) -> float:
    """S(t), S*(t)."""
    s = alpha * t + beta
    return s - alpha * math.floor(s / alpha) if schedule == "S*" else s


def gamma(kind: str, numbers: list[Pair]) -> float:
    """Ratio of sums; of the K-LoRA code: mean of the ratios below three times their mean."""
    if kind == "off":
        return 1.0
    if kind == "paper":
        return math.fsum(c for c, _ in numbers) / math.fsum(s for _, s in numbers)
    ratios = [c / s for c, s in numbers]
    mean = math.fsum(ratios) / len(ratios)
    kept = [ratio for ratio in ratios if ratio < 3 * mean]
    return math.fsum(kept) / len(kept)


def _times(a: float, b: float) -> float:
    """A product in which "all of it" beats "nothing yet"."""
    return math.inf if math.inf in (a, b) else a * b


def k_lora_sides(layers: list[Layer], values: dict[str, object], t: float) -> list[Pair]:
    """S_c and S_s * gamma * S(t) * balance."""
    scale = bonus(values["schedule"], values["alpha"], float(values["beta"]), t)
    g = gamma(values["gamma"], [one.total for one in layers])
    return [
        (one.top_k[0], _times(one.top_k[1] * g * scale, balance_factor(values["balance"]))) for one in layers
    ]


def est_sides(layers: list[Layer], values: dict[str, object], t: float) -> list[Pair]:
    """E_c and (alpha t + 1 - d) gamma_E E_s * balance; the authors' gamma is the plain mean of L1 ratios."""
    if values["gamma"] == "published":
        ratios = [one.total[0] / one.total[1] for one in layers]
        g = math.fsum(ratios) / len(ratios)
    else:
        g = gamma(values["gamma"], [one.energy for one in layers])
    scale = values["alpha"] * t + 1 - values["similarity"]
    return [
        (one.energy[0], _times(one.energy[1] * g * scale, balance_factor(values["balance"])))
        for one in layers
    ]


def winner_takes(sides: Pair, keep: float, balance: float) -> Pair:
    """1 for the winner; the loser keeps its part, less as balance turns away from it."""
    content, style = sides
    if content >= style:
        return 1.0, keep * (1 + min(balance, 0))
    return keep * (1 - max(balance, 0)), 1.0


def smooth(sides: Pair, tau: float) -> Pair:
    """p = sigmoid(ln(S_c / style's side) / tau); (min(1, 2p), min(1, 2(1 - p)))."""
    content, style = sides
    if math.isinf(style):
        p = 0.0
    elif style == 0:
        p = 1.0
    else:
        ratio = (math.log(content) - math.log(style)) / tau
        p = 1 / (1 + math.exp(-ratio)) if ratio > -700 else 0.0
    return min(1.0, 2 * p), min(1.0, 2 * (1 - p))


def weights(values: dict[str, object], t: float) -> Pair:
    """Each LoRA by a line from start to end, the side that balance turns away from made smaller."""
    content = values["content_from"] + (values["content_to"] - values["content_from"]) * t
    style = values["style_from"] + (values["style_to"] - values["style_from"]) * t
    return content * (1 - max(values["balance"], 0)), style * (1 + min(values["balance"], 0))


def turns(turn: int, step: int) -> Pair:
    """LoRA Switch: ``turn`` steps of content, ``turn`` steps of style, and so on."""
    order = [(1.0, 0.0)] * turn + [(0.0, 1.0)] * turn
    while len(order) <= step:
        order += order
    return order[step]


def time_only(until: Fraction, step: int, steps: int) -> Pair:
    return (1.0, 0.0) if Fraction(step, steps) < until else (0.0, 1.0)


def guided(unconditional: Pair, conditional: Pair, g: float) -> Pair:
    """How often each LoRA counts in u + g (c - u), to first order."""
    content, style = (u + g * (c - u) for u, c in zip(unconditional, conditional, strict=True))
    return content, style


def gram_energy(up: list[list[float]], down: list[list[float]], scale: float) -> float:
    """The squared Frobenius norm of scale * up @ down as sum((up^T up) * (down down^T)), each r x r."""
    rank = len(down)
    columns = [[row[i] for row in up] for i in range(rank)]
    total = math.fsum(
        math.fsum(a * b for a, b in zip(columns[i], columns[j], strict=True))
        * math.fsum(a * b for a, b in zip(down[i], down[j], strict=True))
        for i in range(rank)
        for j in range(rank)
    )
    return scale * scale * total
