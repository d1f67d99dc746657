"""All rules, in the order in which they are offered. A new one is a line in `MODULES`."""

from __future__ import annotations

from importlib import import_module

from klora.rules.rule import Rule

#: Files of this folder; each declares its ``RULE``.
MODULES = (
    "k_lora",
    "smooth",
    "est",
    "weights",
    "turns",
    "coin",
    "time_only",
    "shuffled_layers",
    "same_share",
)

RULES: tuple[Rule, ...] = tuple(import_module(f"klora.rules.{name}").RULE for name in MODULES)


def rule_named(name: str) -> Rule:
    """The rule of this name, which a setting has checked."""
    return next(rule for rule in RULES if rule.name == name)
