"""Settings that several rules share, and the numbers that follow from them."""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from klora.errors import SettingsError
from klora.options import Setting, Values, normal_top_k
from klora.rules.rule import Contest
from klora.schedule import Moment, bonus, published_progress

Numbers = NDArray[np.float64]

AUTOMATIC = "auto"

#: Schedule -> beta of the paper (section 3.3; S* lists 1.3, the published code has 0.85 * 1.5).
PAPER_BETA = {"S": 0.5, "S*": 1.3}

LARGEST = 1e9

#: The infotext says what auto was: ``auto (0.5)``.
_AUTOMATIC_BETA = re.compile(rf"{AUTOMATIC}(?: \([0-9.]+\))?")


def normal_beta(text: str) -> str:
    """``auto`` or a number as text; raises ``ValueError`` with the remedy."""
    if _AUTOMATIC_BETA.fullmatch(text.lower()):
        return AUTOMATIC
    remedy = f"write auto or a number from 0 to {LARGEST:g}"
    try:
        beta = float(text)
    except ValueError as error:
        raise ValueError(remedy) from error
    if not 0 <= beta <= LARGEST:
        raise ValueError(remedy)
    return f"{beta:.12g}"


def beta_value(values: Values) -> float:
    """Beta as a number: ``auto`` is the paper's value for the schedule."""
    beta = values["beta"]
    return PAPER_BETA[str(values["schedule"])] if beta == AUTOMATIC else float(beta)


def _resolved_beta(values: Values) -> str | None:
    return f"{beta_value(values):g}" if values["beta"] == AUTOMATIC else None


SCHEDULE = Setting(
    "schedule",
    "choice",
    "Schedule",
    "S",
    "S: the subject first, the style towards the end. S*: a little style at the very start "
    "too, for more background and flat colour and a weaker texture; advised for Flux.",
    scope="rule",
    choices=("S", "S*"),
)
ALPHA = Setting(
    "alpha",
    "number",
    "Alpha",
    1.5,
    "How much the style's bonus grows during the sampling. Larger: more style at the end.",
    scope="rule",
    minimum=0,
    maximum=LARGEST,
    slider=(0, 4, 0.05),
)
BETA = Setting(
    "beta",
    "text",
    "Beta",
    AUTOMATIC,
    "The style's bonus at the start. Larger: more style from the first step on. "
    "auto is 0.5 for S and 1.3 for S*.",
    scope="rule",
    check=normal_beta,
    resolved=_resolved_beta,
)
TOP_K = Setting(
    "top_k",
    "text",
    "Top-K",
    "rank",
    "How many of a layer's largest weights are compared: rank (the product of both ranks), "
    "a number such as 64, or a share such as 0.1%.",
    scope="rule",
    check=normal_top_k,
    advanced=True,
)
GAMMA = Setting(
    "gamma",
    "choice",
    "Gamma",
    "paper",
    "Puts two LoRAs of different strength on one footing. paper: ratio of their totals. "
    "published: the mean ratio that the authors' code uses. off: no balancing.",
    scope="rule",
    choices=("paper", "published", "off"),
    advanced=True,
)
CLOCK = Setting(
    "clock",
    "choice",
    "Clock",
    "step",
    "What counts as progress. step: the number of the step. noise: how much noise is left, so "
    "that img2img and hires fix start late in the schedule. published: as the authors' code counts.",
    scope="rule",
    choices=("step", "noise", "published"),
    advanced=True,
)
OTHER_LAYERS = Setting(
    "other_layers",
    "choice",
    "Other layers",
    "both",
    "Layers outside attention that both LoRAs change. both: added as usual. fuse: the same "
    "contest. content or style: only that one. none: neither.",
    scope="rule",
    choices=("fuse", "both", "content", "style", "none"),
    advanced=True,
)


def progress(contest: Contest, moment: Moment) -> Numbers | float:
    """t by the clock of the settings: a number, or one for each layer, ``[layers]``."""
    clock = contest.text("clock")
    if clock == "noise":
        return moment.noise_progress
    if clock == "published":
        return published_progress(min(moment.step, moment.steps - 1), moment.steps, contest.layers)
    return moment.progress


def styles_bonus(contest: Contest, moment: Moment) -> Numbers:
    """S(t) or S*(t) at a moment (paper, equations 5 and 7)."""
    return bonus(
        contest.text("schedule"),
        contest.number("alpha"),
        beta_value(contest.values),
        progress(contest, moment),
    )


def check_schedule(values: Values) -> None:
    """Raise `SettingsError` where S* has nothing to be taken modulo."""
    if values["schedule"] == "S*" and values["alpha"] == 0:
        raise SettingsError("K-LoRA: alpha is 0, but S* is taken modulo alpha; raise alpha or use S.")


def style_factor(balance: float) -> float:
    """What balance (-1 to 1) multiplies the style's side of a contest by: exp(2 artanh(balance)).

    1 at 0, 3 at 0.5, a third at -0.5; 0 at -1 and infinite at 1, where one side wins everywhere.
    """
    return math.inf if balance >= 1 else (1 + balance) / (1 - balance)


def styles_side(style: Numbers, gamma: float, scale: Numbers | float, balance: float) -> Numbers:
    """S_s * gamma * S(t) * balance, ``[layers]``; a style that is zero in a layer stays zero there.

    At balance 1 the side is infinite even where S(t) is 0: the style wins every layer that it changes.
    """
    factor = style_factor(balance)
    with np.errstate(invalid="ignore", over="ignore"):
        side = np.full(style.shape, factor) if math.isinf(factor) else style * gamma * scale * factor
    return np.where(style == 0, 0.0, side)
