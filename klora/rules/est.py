"""EST-LoRA: the contest by energy, with a bonus that depends on how alike content and style look."""

from __future__ import annotations

from klora.options import Setting, Values
from klora.rules import contest_settings as shared
from klora.rules.k_lora import KEEP, winner_and_loser
from klora.rules.rule import Contest, Numbers, Rule
from klora.schedule import Moment
from klora.scores import ENERGY, TOTAL, gamma, mean_ratio

SIMILARITY = Setting(
    "similarity",
    "number",
    "Similarity d",
    0.5,
    "How alike a picture of the content alone and one of the style alone look, 0 to 1 (the paper measures "
    "it by DINO): the more alike, the less style.",
    scope="rule",
    minimum=0,
    maximum=1,
    slider=(0, 1, 0.05),
)


class Est(Rule):
    """Content wins a layer where E_c >= (alpha * t + 1 - d) * gamma_E * E_s, E the squared Frobenius norm."""

    name = "EST"
    help = "The LoRA with the larger energy wins a layer; alpha and the similarity d set the style's bonus."
    source = "EST-LoRA, arXiv 2508.02165"
    settings = (shared.ALPHA, SIMILARITY, shared.GAMMA, shared.CLOCK, shared.OTHER_LAYERS, KEEP)

    def measures(self, values: Values) -> tuple[str, ...]:
        """Energies, and for the authors' own gamma the totals."""
        return (ENERGY, TOTAL)

    def gamma(self, contest: Contest) -> float:
        """The ratio of the total energies; ``published`` is the mean ratio of L1 norms, as its authors' code
        has it: that drops no outliers.
        """
        choice = contest.text("gamma")
        if choice == "published":
            return mean_ratio(contest.scores.content(TOTAL), contest.scores.style(TOTAL))
        return gamma(choice, contest.scores.content(ENERGY), contest.scores.style(ENERGY))

    def shares(self, contest: Contest, moment: Moment) -> Numbers:
        """1 for the winner, ``keep`` for the loser."""
        balance = contest.number("balance")
        scale = contest.number("alpha") * shared.progress(contest, moment) + 1 - contest.number("similarity")
        side = shared.styles_side(contest.scores.style(ENERGY), self.gamma(contest), scale, balance)
        wins = contest.scores.content(ENERGY) >= side
        return winner_and_loser(wins, contest.number("keep"), balance)


RULE: Rule = Est()
