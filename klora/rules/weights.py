"""Weights: each LoRA by a number that is constant or runs from a start to an end. 1 and 1 is adding."""

from __future__ import annotations

from typing import Any

from klora.options import Setting
from klora.rules import contest_settings as shared
from klora.rules.rule import Contest, Decides, Numbers, Rule, multiplied_by_balance, side_by_side
from klora.schedule import Moment


def _weight(name: str, label: str, help: str) -> Setting:
    bounds: dict[str, Any] = {"minimum": -10, "maximum": 10, "slider": (0, 2, 0.05)}
    return Setting(name, "number", label, 1.0, help, scope="rule", **bounds)


CONTENT_FROM = _weight("content_from", "Content from", "How much of the content LoRA at the first step.")
CONTENT_TO = _weight("content_to", "Content to", "How much of the content LoRA at the last step.")
STYLE_FROM = _weight("style_from", "Style from", "How much of the style LoRA at the first step.")
STYLE_TO = _weight("style_to", "Style to", "How much of the style LoRA at the last step.")


class Weights(Rule):
    """Shares that are the same in all layers: from + (to - from) * t, for each LoRA its own."""

    name = "weights"
    help = "Both LoRAs in all layers, each by a weight that may change from the first step to the last."
    source = "what every WebUI does, for two weights of 1"
    settings = (CONTENT_FROM, CONTENT_TO, STYLE_FROM, STYLE_TO, shared.CLOCK)
    decides = Decides.ALL

    def shares(self, contest: Contest, moment: Moment) -> Numbers:
        """Equal in all layers, except with the clock ``published``, which goes by layers."""
        t = shared.progress(contest, moment)
        content, style = (
            _between(contest.number(f"{which}_from"), contest.number(f"{which}_to"), t)
            for which in ("content", "style")
        )
        return multiplied_by_balance(side_by_side(content, style, contest.layers), contest.number("balance"))


RULE: Rule = Weights()


def _between(start: float, stop: float, t: Numbers | float) -> Numbers | float:
    # A constant stays exactly what the user wrote, and so does the end.
    return start if start == stop else start * (1 - t) + stop * t
