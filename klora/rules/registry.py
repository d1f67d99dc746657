"""All rules and transforms, in the order in which they are offered. A new one is a line here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from klora.rules.part import Part
from klora.rules.rule import Rule
from klora.rules.transform import Transform

#: Files of this folder; each declares its ``RULE``.
MODULES = (
    "k_lora",
    "smooth",
    "steady",
    "est",
    "weights",
    "turns",
    "coin",
    "time_only",
    "shuffled_layers",
    "same_share",
)

RULES: tuple[Rule, ...] = tuple(import_module(f"klora.rules.{name}").RULE for name in MODULES)


#: Files of this folder; each declares its ``TRANSFORM``.
TRANSFORM_MODULES = (
    "untouched",
    "np_lora",
    "ssr",
)

TRANSFORMS: tuple[Transform, ...] = tuple(
    import_module(f"klora.rules.{name}").TRANSFORM for name in TRANSFORM_MODULES
)

#: Setting -> the parts of which it chooses one.
PARTS: Mapping[str, tuple[Part, ...]] = {"rule": RULES, "transform": TRANSFORMS}


def rule_named(name: str) -> Rule:
    """The rule of this name, which a setting has checked."""
    return next(rule for rule in RULES if rule.name == name)


def transform_named(name: str) -> Transform:
    """The transform of this name, which a setting has checked."""
    return next(transform for transform in TRANSFORMS if transform.name == name)
