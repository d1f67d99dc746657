"""Same share: an ablation in which time alone decides, and each LoRA gets as much as K-LoRA gives it."""

from __future__ import annotations

import numpy as np

from klora.rules.k_lora import KLora, winner_and_loser
from klora.rules.rule import Contest, Numbers, Rule
from klora.schedule import Moment


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


RULE: Rule = SameShare()
