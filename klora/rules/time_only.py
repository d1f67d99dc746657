"""Time only: the paper's ablation in which all layers change hands at one moment."""

from __future__ import annotations

import numpy as np

from klora.options import Setting
from klora.rules import contest_settings as shared
from klora.rules.k_lora import winner_and_loser
from klora.rules.rule import Contest, Numbers, Rule
from klora.schedule import Moment

UNTIL = Setting(
    "until",
    "number",
    "Content until",
    0.5,
    "The share of the steps after which style takes over from content in all layers.",
    scope="rule",
    minimum=0,
    maximum=1,
    slider=(0, 1, 0.05),
)


class TimeOnly(Rule):
    """Content in all layers until a share of the steps is done, then style."""

    name = "time only"
    help = "Time alone decides: content, and from a share of the steps on style, in all contested layers."
    source = "arXiv 2502.18461, section 4.3"
    settings = (shared.OTHER_LAYERS, UNTIL)
    is_for_lab_only = True

    def shares(self, contest: Contest, moment: Moment) -> Numbers:
        """1 and 0; balance moves the moment to either end."""
        balance, until = contest.number("balance"), contest.number("until")
        until = until * (1 - balance) if balance > 0 else until - balance * (1 - until)
        wins = np.full(contest.layers, moment.share_done < until)
        return winner_and_loser(wins, 0.0, balance)


RULE: Rule = TimeOnly()
