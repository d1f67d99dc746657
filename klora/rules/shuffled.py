"""Shuffled layers and same share: ablations that keep how much K-LoRA gives to each LoRA, and nothing
else.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from klora.options import Setting
from klora.rules.coin import COIN_SEED
from klora.rules.k_lora import KLora, winner_and_loser
from klora.rules.rule import Contest, Numbers
from klora.schedule import Moment


class ShuffledLayers(KLora):
    """K-LoRA's shares, dealt to the layers by lot: as many winners at each step, as few changes, no
    scores.
    """

    name = "shuffled layers"
    help = "K-LoRA's shares dealt to the layers by lot: an ablation, to compare with."
    source = "this project"
    settings: ClassVar[tuple[Setting, ...]] = (*KLora.settings, COIN_SEED)
    is_for_lab_only = True

    def shares(self, contest: Contest, moment: Moment) -> Numbers:
        """The same permutation at each step."""
        order = np.random.default_rng(int(contest.number("coin_seed"))).permutation(contest.layers)
        shares: Numbers = super().shares(contest, moment)[order]
        return shares


class SameShare(KLora):
    """Content until it has had the part of the steps that K-LoRA gives it of the layer-steps, then style."""

    name = "same share"
    help = "All layers change hands when content has had what K-LoRA gives it: an ablation, to compare with."
    source = "this project"
    is_for_lab_only = True

    def shares(self, contest: Contest, moment: Moment) -> Numbers:
        """1 and 0, all layers alike."""
        steps = [Moment(step, moment.steps) for step in range(moment.steps)]
        won = np.mean([self.content_wins(contest, one) for one in steps])
        wins = np.full(contest.layers, moment.step < round(moment.steps * float(won)))
        return winner_and_loser(wins, contest.number("keep"), contest.number("balance"))
