"""Coin: the paper's ablation in which chance decides instead of the contest."""

from __future__ import annotations

import numpy as np

from klora.options import Setting
from klora.rules import contest_settings as shared
from klora.rules.k_lora import winner_and_loser
from klora.rules.rule import Contest, Numbers, Rule
from klora.schedule import Moment

COIN_SEED = Setting(
    "coin_seed",
    "number",
    "Coin's seed",
    0.0,
    "The seed of the coin that is tossed for each layer at each step.",
    scope="rule",
    minimum=0,
    maximum=2**31 - 1,
)


class Coin(Rule):
    """A coin for each layer and step; balance makes it unfair."""

    name = "coin"
    help = "A coin decides each layer at each step: the paper's ablation, to compare with."
    source = "arXiv 2502.18461, section 4.3"
    settings = (shared.OTHER_LAYERS, COIN_SEED)
    is_for_lab_only = True

    def shares(self, contest: Contest, moment: Moment) -> Numbers:
        """1 and 0, the same for the same seed, step and number of layers."""
        balance = contest.number("balance")
        chance = np.random.default_rng([int(contest.number("coin_seed")), moment.step])
        wins = chance.random(contest.layers) < (1 - balance) / 2
        return winner_and_loser(wins, 0.0, balance)


RULE: Rule = Coin()
