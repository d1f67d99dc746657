"""Shuffled layers and same share: ablations that keep how much K-LoRA gives to each LoRA, and nothing
else.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from klora.options import Setting
from klora.rules.coin import COIN_SEED
from klora.rules.k_lora import KLora
from klora.rules.rule import Contest, Numbers, Rule
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


RULE: Rule = ShuffledLayers()
