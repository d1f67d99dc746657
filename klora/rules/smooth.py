"""Smooth: K-LoRA's contest without an edge; each LoRA gets the more, the more clearly it wins."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from klora.options import Setting
from klora.rules.k_lora import KLora
from klora.rules.rule import Contest, Numbers, Rule, side_by_side
from klora.schedule import Moment
from klora.scores import TOP_K_SUM

TAU = Setting(
    "tau",
    "number",
    "Softness",
    1.0,
    "How softly a layer goes from one LoRA to the other: small is K-LoRA's hard choice, large adds both.",
    scope="rule",
    minimum=0.01,
    maximum=100,
    slider=(0.1, 3, 0.1),
)


class Smooth(KLora):
    """p = sigmoid(ln(S_c / (gamma * S_s * S(t))) / tau); content min(1, 2p), style min(1, 2(1 - p))."""

    name = "smooth"
    help = "K-LoRA's contest without an edge: the more clearly a LoRA wins a layer, the less the other keeps."
    source = "this project: the sigmoid of K-LoRA's contest"
    settings: ClassVar[tuple[Setting, ...]] = (*(one for one in KLora.settings if one.name != "keep"), TAU)

    def shares(self, contest: Contest, moment: Moment) -> Numbers:
        """Both 1 where the contest is even."""
        return soft_shares(contest.scores.content(TOP_K_SUM), self.styles_side(contest, moment), contest)


RULE: Rule = Smooth()


def soft_shares(content: Numbers, style_side: Numbers, contest: Contest) -> Numbers:
    """``[layers, 2]`` from both sides of a contest, each ``[layers]``: 1 and 1 where they are even."""
    p = _content_probability(content, style_side, contest.number("tau"))
    return side_by_side(np.minimum(1.0, 2 * p), np.minimum(1.0, 2 * (1 - p)), contest.layers)


def _content_probability(content: Numbers, style_side: Numbers, tau: float) -> Numbers:
    """The sigmoid, ``[layers]``; half where both sides are zero."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        lead = (np.log(content) - np.log(style_side)) / tau
        p = 1 / (1 + np.exp(-lead))
    return np.where(np.isnan(lead), 0.5, p)
