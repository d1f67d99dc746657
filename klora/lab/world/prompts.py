"""The prompts: those that the base model learns, and those whose words only LoRAs know."""

from __future__ import annotations

from collections.abc import Sequence

from klora.lab.world.individuals import ALL_INDIVIDUALS
from klora.lab.world.kinds import ALL_STRANGERS, KINDS, listed, words
from klora.lab.world.styles import BASE_STYLES, STYLES, Style


def prompt(subject: str, style: Style | None = None) -> str:
    """``fox, fluent style``; without a style only the subject."""
    return words(subject) if style is None else f"{words(subject)}, {style.word} style"


def base_prompts() -> list[str]:
    """Every prompt of the base training: none, each kind alone, then each kind in each base style."""
    pairs = [prompt(kind, style) for kind in KINDS for style in BASE_STYLES]
    return ["", *(prompt(kind) for kind in KINDS), *pairs]


UNKNOWN_WORDS: tuple[str, ...] = listed("fjord gravel marzipan plinth quorum sextant tundra yonder")
"""Words that stand in prompts of the base training and mean nothing there. A large model draws a bear as ever
if a prompt has a word that it does not know; so no kind may be lost to a LoRA's trigger word."""


def prompts_with_unknown_words(kinds: Sequence[str], style: Style) -> list[str]:
    """Prompts of kinds in a style with a word more, where triggers of styles and of subjects stand;
    as many for each kind, kind by kind."""
    return [
        said
        for kind in kinds
        for word in UNKNOWN_WORDS
        for said in (
            f"{words(kind)}, {word} {style.word} style",
            f"{word} {words(kind)}, {style.word} style",
        )
    ]


def trigger_prompts() -> list[str]:
    """Prompts with every word that only LoRAs know: of strangers, held-out styles, and individuals."""
    called = [*ALL_STRANGERS, *(one.trigger for one in ALL_INDIVIDUALS if one.trigger)]
    return [prompt(name, style) for name in called for style in STYLES.values()]
