"""All rules, in the order in which they are offered. A new one is a line here."""

from __future__ import annotations

from klora.rules.coin import Coin
from klora.rules.est import Est
from klora.rules.k_lora import KLora
from klora.rules.rule import Rule
from klora.rules.shuffled import SameShare, ShuffledLayers
from klora.rules.smooth import Smooth
from klora.rules.time_only import TimeOnly
from klora.rules.turns import Turns
from klora.rules.weights import Weights

RULES: tuple[Rule, ...] = (
    KLora(),
    Smooth(),
    Est(),
    Weights(),
    Turns(),
    Coin(),
    TimeOnly(),
    ShuffledLayers(),
    SameShare(),
)


def rule_named(name: str) -> Rule:
    """The rule of this name, which a setting has checked."""
    return next(rule for rule in RULES if rule.name == name)
