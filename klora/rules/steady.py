"""Steady: K-LoRA's contest without an edge and without time, so that nothing changes while sampling."""

from __future__ import annotations

from typing import ClassVar

from klora.options import Setting, Values
from klora.rules import contest_settings as shared
from klora.rules.k_lora import KLora
from klora.rules.rule import Contest, Numbers, Rule
from klora.rules.smooth import TAU, soft_shares
from klora.schedule import Moment
from klora.scores import TOP_K_SUM

HEAD_START = Setting(
    "head_start",
    "number",
    "Head start",
    2.0,
    "How many times the content's side of the contest counts. 1: both alike; more: the style takes over only "
    "layers where it is clearly the stronger.",
    scope="rule",
    minimum=0.01,
    maximum=100,
    slider=(0.5, 10, 0.5),
    advanced=True,
)


class Steady(KLora):
    """p = sigmoid(ln(h * S_c / (gamma * S_s)) / tau); content min(1, 2p), style min(1, 2(1 - p)).

    h is the head start. At 2 a balance of 0 gives what a balance of -1/3 gives without it, because balance
    multiplies the style's side: so the middle of the balance is what did best (docs/choices.md).
    """

    name = "steady"
    help = "The same contest, decided once for all steps, so that nothing changes while sampling."
    source = "this project: the sigmoid of K-LoRA's contest, without its schedule"
    settings: ClassVar[tuple[Setting, ...]] = (
        shared.TOP_K,
        shared.GAMMA,
        shared.OTHER_LAYERS,
        TAU,
        HEAD_START,
    )

    def check(self, values: Values) -> None:
        """There is no schedule that could be wrong."""

    def styles_side(self, contest: Contest, moment: Moment) -> Numbers:
        """``[layers]``: gamma * S_s, times what balance makes of it."""
        style = contest.scores.style(TOP_K_SUM)
        return shared.styles_side(style, self.gamma(contest), 1.0, contest.number("balance"))

    def shares(self, contest: Contest, moment: Moment) -> Numbers:
        """The same at every moment; both 1 where the contest is even."""
        content = contest.number("head_start") * contest.scores.content(TOP_K_SUM)
        return soft_shares(content, self.styles_side(contest, moment), contest)


RULE: Rule = Steady()
