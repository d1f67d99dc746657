"""K-LoRA: a contest of Top-K sums in each layer, and the style's side grows with time."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from klora.options import Setting, Values
from klora.rules import contest_settings as shared
from klora.rules.rule import CONTENT, STYLE, Contest, Numbers, Rule
from klora.schedule import Moment
from klora.scores import TOP_K_SUM, TOTAL, gamma

KEEP = Setting(
    "keep",
    "number",
    "Loser keeps",
    0.0,
    "What the LoRA that loses a layer keeps of its weight there: 0 as published, 1 adds both.",
    scope="rule",
    minimum=0,
    maximum=1,
    slider=(0, 1, 0.05),
    before=0.0,
)


class KLora(Rule):
    """Content wins a layer where S_c >= S_s * gamma * S(t), a tie included; the loser keeps ``keep``."""

    name = "K-LoRA"
    help = "The LoRA with the larger Top-K sum wins a layer; the style's side grows during the sampling."
    source = "Ouyang, Li, Hou: K-LoRA, CVPR 2025, arXiv 2502.18461, section 3.2"
    settings: ClassVar[tuple[Setting, ...]] = (
        shared.SCHEDULE,
        shared.ALPHA,
        shared.BETA,
        shared.TOP_K,
        shared.GAMMA,
        shared.CLOCK,
        shared.OTHER_LAYERS,
        KEEP,
    )

    def measures(self, values: Values) -> tuple[str, ...]:
        """Top-K sums for the contest, totals for gamma."""
        return (TOP_K_SUM, TOTAL)

    def gamma(self, contest: Contest) -> float:
        """The ratio of the totals (paper, equation 6), or as the setting says."""
        return gamma(contest.text("gamma"), contest.scores.content(TOTAL), contest.scores.style(TOTAL))

    def check(self, values: Values) -> None:
        """S* needs an alpha."""
        shared.check_schedule(values)

    def content_wins(self, contest: Contest, moment: Moment) -> NDArray[np.bool_]:
        """``[layers]``: where content wins."""
        return contest.scores.content(TOP_K_SUM) >= self.styles_side(contest, moment)

    def styles_side(self, contest: Contest, moment: Moment) -> Numbers:
        """``[layers]``: S_s * gamma * S(t), times what balance makes of it."""
        scale = shared.styles_bonus(contest, moment)
        style = contest.scores.style(TOP_K_SUM)
        return shared.styles_side(style, self.gamma(contest), scale, contest.number("balance"))

    def shares(self, contest: Contest, moment: Moment) -> Numbers:
        """1 for the winner, ``keep`` for the loser."""
        wins = self.content_wins(contest, moment)
        return winner_and_loser(wins, contest.number("keep"), contest.number("balance"))


RULE: Rule = KLora()


def winner_and_loser(content_wins: NDArray[np.bool_], keep: float, balance: float) -> Numbers:
    """``[layers, 2]`` from ``[layers]`` of bool. What the loser keeps shrinks as balance turns away from
    it.
    """
    shares = np.ones((len(content_wins), 2))
    shares[~content_wins, CONTENT] = keep * min(1.0, 1.0 - balance)
    shares[content_wins, STYLE] = keep * min(1.0, 1.0 + balance)
    return shares
