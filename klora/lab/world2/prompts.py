"""The prompts of world 2: those that the base model learns, and those whose words only LoRAs know."""

from __future__ import annotations

from klora.lab import world
from klora.lab.world2.individuals import ALL_INDIVIDUALS
from klora.lab.world2.kinds import ALL_STRANGERS, KINDS
from klora.lab.world2.styles import BASE_STYLES, STYLES


def base_prompts() -> list[str]:
    """Every prompt of the base training: none, each kind alone, then each kind in each base style."""
    pairs = [world.prompt(kind, style) for kind in KINDS for style in BASE_STYLES]
    return ["", *(world.prompt(kind) for kind in KINDS), *pairs]


def trigger_prompts() -> list[str]:
    """Prompts with every word that only LoRAs know: of strangers, held-out styles, and individuals."""
    called = [*ALL_STRANGERS, *(one.trigger for one in ALL_INDIVIDUALS if one.trigger)]
    return [world.prompt(name, style) for name in called for style in STYLES.values()]
