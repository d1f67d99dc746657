"""Turns: the LoRAs take turns, a few steps each, content first (LoRA Switch)."""

from __future__ import annotations

from klora.options import Setting
from klora.rules.rule import Contest, Decides, Numbers, Rule, side_by_side
from klora.schedule import Moment

TURN = Setting(
    "turn",
    "number",
    "Steps a turn",
    5.0,
    "After how many steps the other LoRA has its turn.",
    scope="rule",
    minimum=1,
    maximum=1000,
    slider=(1, 20, 1),
)


class Turns(Rule):
    """All layers apply content for ``turn`` steps, then style for as many, and so on."""

    name = "turns"
    help = "The LoRAs take turns, a few steps each, content first."
    source = "Zhong et al.: Multi-LoRA Composition (LoRA Switch), arXiv 2402.16843"
    settings = (TURN,)
    decides = Decides.ALL

    def shares(self, contest: Contest, moment: Moment) -> Numbers:
        """1 and 0; balance moves steps of a round of two turns from one LoRA to the other."""
        round_of_two = 2 * round(contest.number("turn"))
        of_content = round(round_of_two * (1 - contest.number("balance")) / 2)
        content = 1.0 if moment.step % round_of_two < of_content else 0.0
        return side_by_side(content, 1 - content, contest.layers)


RULE: Rule = Turns()
