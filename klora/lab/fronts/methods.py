"""Methods by name: a rule and its settings as text, ``K-LoRA keep=0.7 guidance=content style_weight=1.3``.

Every setting that a name does not say has the value written here, so that a default that changes later does
not change what a name means. Balance is no part of a name: every method is run over all of it.

Two keys are the lab's own: ``contest=effect`` decides by the measured effect of each LoRA in place of the
rule's scores, and ``content_e=`` says how strongly the content counts whatever the CFG scale is, as a number
for ``guidance`` does for the style.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from klora.errors import KloraError
from klora.rules import RULES
from klora.settings import Settings

FIXED: Mapping[str, object] = {
    "content_weight": 1.0,
    "style_weight": 1.0,
    "guidance": "both",
    "schedule": "S",
    "alpha": 1.5,
    "beta": "auto",
    "top_k": "rank",
    "gamma": "paper",
    "clock": "step",
    "other_layers": "both",
    "keep": 0.0,
    "tau": 1.0,
    "head_start": 1.0,
    "content_from": 1.0,
    "content_to": 1.0,
    "style_from": 1.0,
    "style_to": 1.0,
    "similarity": 0.5,
    "turn": 5.0,
    "transform": "none",
    "mu": 0.5,
    "ridge": 0.001,
}
"""What a setting is where a name does not say it."""

SCORES, EFFECT = "scores", "effect"
BY_EFFECT: tuple[str, ...] = ("K-LoRA", "smooth")
"""Rules whose contest can go by measured effect."""

ADDED = "weights"
"""The rule that adds."""

BALANCES: tuple[float, ...] = (-0.9, -0.7, -0.5, -0.3, -0.15, 0.0, 0.15, 0.3, 0.5, 0.7, 0.9)
"""The values of the balance over which every method is run, from subject to style."""


@dataclass(frozen=True)
class Method:
    """A rule with its settings; two of the same ``name`` are the same method."""

    name: str
    settings: Settings
    contest: str = SCORES
    """What K-LoRA's contest goes by: `SCORES` of the weights, or the measured `EFFECT`."""
    content_e: float = 1.0
    """How strongly the content counts in the guided prediction; 1: as in both passes."""

    def at(self, balance: float) -> Settings:
        """The settings at one balance."""
        return self.settings.replace(balance=balance)


def method(name: str) -> Method:
    """The method that a name says; raises `KloraError` for an unknown rule or setting, or a bad value."""
    known = sorted((rule.name for rule in RULES), key=len, reverse=True)
    rule = next((one for one in known if name == one or name.startswith(f"{one} ")), None)
    if rule is None:
        raise KloraError(f"there is no rule in {name!r}; begin with one of: {', '.join(sorted(known))}.")
    changes: dict[str, object] = {}
    for part in name[len(rule) :].split():
        key, equals, value = part.partition("=")
        if not equals or key == "balance":
            raise KloraError(f"method {name!r}: write NAME=VALUE for each setting but balance, not {part!r}.")
        changes[key] = value
    contest = str(changes.pop("contest", SCORES))
    if contest not in (SCORES, EFFECT):
        raise KloraError(f"method {name!r}: contest is {SCORES} or {EFFECT}.")
    if contest == EFFECT and rule not in BY_EFFECT:
        raise KloraError(f"method {name!r}: only {' and '.join(BY_EFFECT)} can go by measured effect.")
    content_e = _at_least_1(name, str(changes.pop("content_e", "1")))
    settings = Settings.from_mapping({**FIXED, **changes, "rule": rule})
    return Method(name, settings, contest, content_e)


def _at_least_1(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value >= 1:
        raise KloraError(f"method {name!r}: content_e is a number from 1 on, not {text!r}.")
    return value


def crossed(names: tuple[str, ...], guidances: tuple[str, ...]) -> tuple[str, ...]:
    """Every name with every guidance; ``both`` goes without saying."""
    return tuple(name if one == "both" else f"{name} guidance={one}" for one in guidances for name in names)


BESIDES: tuple[str, ...] = (
    "weights guidance=3 content_e=1.5",
    "K-LoRA keep=0.7 guidance=3 content_e=1.5",
    "smooth guidance=2 content_e=1.5",
    "smooth guidance=3 content_e=1.5",
)
"""Methods that are crossed with nothing."""


PLAIN: tuple[str, ...] = (
    "weights",
    "weights style_weight=1.3",
    "weights style_weight=1.7",
    "weights content_weight=0.8 style_weight=0.8",
    "weights content_weight=1.2 style_weight=1.2",
    "weights content_from=1 content_to=0.6 style_from=0.6 style_to=1",
    "K-LoRA",
    "K-LoRA schedule=S*",
    "K-LoRA keep=0.3",
    "K-LoRA keep=0.5",
    "K-LoRA keep=0.7",
    "K-LoRA keep=0.7 style_weight=1.3",
    "steady",
    "steady head_start=2",
    "smooth",
    "smooth tau=0.5",
    "smooth style_weight=1.3",
    "smooth contest=effect",
    "K-LoRA keep=0.7 contest=effect",
    "weights transform=NP-LoRA",
    "weights transform=NP-LoRA mu=1000000",
    "weights transform=NP-LoRA mu=1000000 style_weight=1.3",
    "weights transform=SSR",
    "EST",
    "turns",
)
"""The rules and settings that are compared, each crossed with `GUIDANCES`."""

GUIDANCES: tuple[str, ...] = ("both", "content", "none", "1.5", "2", "3")
PUBLISHED: dict[str, str] = {
    "K-LoRA": "K-LoRA as published",
    "K-LoRA schedule=S*": "K-LoRA S* as published",
}
"""Methods that stand beside themselves under a label, at balance 0, as their authors have them."""
DEFAULT = "steady head_start=2 guidance=4x"
AS_DEFAULT = {DEFAULT: "K-LoRA, balanced"}
"""What a new user has, likewise."""
PLAINLY_ADDED = {"weights": "added 1 + 1"}
"""What every WebUI does, likewise."""


def study() -> tuple[str, ...]:
    """All methods of the study."""
    return (*crossed(PLAIN, GUIDANCES), *BESIDES)
