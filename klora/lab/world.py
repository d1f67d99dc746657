"""The lab's small world: which subjects and styles exist, who sees them, and how a prompt names them.

Every subject is drawn in every style, so the true picture of any pair is known. The lists are explicit,
so that the splits can be read and cannot drift.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from klora.lab import icons
from klora.lab.icons import Picture

SIZE = 64
"""Edge of a picture in pixels."""


def listed(names: str) -> tuple[str, ...]:
    """Names written with spaces between them."""
    return tuple(names.split())


DEVELOPMENT_SUBJECTS: tuple[str, ...] = listed(
    "strawberry penguin cactus guitar rocket snail mushroom pineapple camera frog sailboat crown"
)
"""Held-out subjects for choosing defaults."""

TEST_SUBJECTS: tuple[str, ...] = listed(
    "tulip octopus watermelon bomb koala trumpet helicopter turtle ghost hamburger banana elephant"
)
"""Held-out subjects that are only reported."""

HELD_OUT_SUBJECTS = DEVELOPMENT_SUBJECTS + TEST_SUBJECTS

BASE_SUBJECTS: tuple[str, ...] = listed(
    """
    airplane alien ambulance amphora anchor ant automobile avocado backpack bacon badminton baguette-bread
    balloon bank baseball basketball bat bathtub battery bear bed beer-mug bell bicycle bird birthday-cake
    blossom blowfish blue-book boar bookmark bouquet bow-and-arrow boxing-glove bread briefcase bug
    burrito bus butterfly camel candle candy canoe carrot castle cat cheese-wedge cherries chestnut
    chicken chipmunk chocolate-bar christmas-tree church clapper-board closed-umbrella cloud cookie
    couch-and-lamp cow crab crayon crescent-moon cricket crocodile croissant crystal-ball cucumber dagger
    deciduous-tree deer dog dolphin door doughnut dragon dress droplet drum duck eagle ear-of-corn egg
    eggplant electric-plug envelope evergreen-tree eye factory fire fire-engine fish flashlight
    floppy-disk footprints fountain four-leaf-clover fox french-fries fuel-pump full-moon game-die
    gem-stone glasses glowing-star goat gorilla grapes green-apple hammer hamster handbag headphone
    hibiscus high-heeled-shoe honey-pot honeybee horse hot-beverage hot-dog hot-pepper house ice-cream
    jack-o-lantern jeans key keyboard kitchen-knife kiwi-fruit lady-beetle laptop lemon leopard light-bulb
    lion lipstick lizard locked lollipop loudspeaker maple-leaf meat-on-bone melon memo microphone
    microscope mobile-phone money-bag monkey motorcycle mouse mount-fuji owl ox package palm-tree pancakes
    panda paperclip peach peanuts pear pencil pig pill pizza popcorn potato purse rabbit racing-car radio
    rainbow red-apple red-heart rhinoceros ring robot rooster rose running-shoe satellite-antenna
    saxophone scissors scorpion scroll seedling shark shield ship shrimp skull snake snowflake
    snowman-without-snow soccer-ball spider spiral-shell spoon squid star steaming-bowl stopwatch sun
    sunflower sunglasses sushi syringe t-shirt taco tangerine taxi telephone telescope television tennis
    tent thermometer tiger toilet tomato tornado tractor train trophy tropical-fish turkey umbrella
    unicorn violin volcano watch wheelchair-symbol whale wine-glass wolf wrapped-gift wrench
    """
)
"""Subjects that the base model knows; all styles draw every one of them."""

STYLE_LORA_VALIDATION: tuple[str, ...] = listed(
    "fox castle butterfly pear sunflower dolphin rooster robot tractor owl lemon bicycle"
)
"""Base subjects kept out of the style LoRAs' training; a style LoRA alone is judged on these."""


@dataclass(frozen=True)
class Style:
    """One way to draw: the icon set, the word that prompts use, and what is done to the drawing."""

    name: str
    word: str
    set_name: str
    transform: Callable[[npt.NDArray[np.uint8]], Picture]


def _bytes(values: npt.NDArray[np.floating[Any]]) -> Picture:
    """Values from 0 to 255, rounded."""
    rounded: Picture = np.clip(values, 0, 255).round().astype(np.uint8)
    return rounded


def on_white(pixels: npt.NDArray[np.uint8]) -> Picture:
    """Lay a drawing with opacity on white."""
    opacity = pixels[..., 3:].astype(np.float32) / 255
    return _bytes(pixels[..., :3] * opacity + 255 * (1 - opacity))


def _ramp(pixels: npt.NDArray[np.uint8], stops: tuple[tuple[int, int, int], ...]) -> Picture:
    """Brightness turned into a row of colours, dark to light, on white paper.

    White paper, as the autoencoder keeps it; on coloured grounds it loses 8 decibels and more.
    """
    brightness = on_white(pixels).astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    places, colours = np.linspace(0, 255, len(stops)), np.array(stops, np.float32)
    drawn = np.stack([np.interp(brightness, places, colours[:, i]) for i in range(3)], axis=-1)
    opacity = pixels[..., 3:].astype(np.float32) / 255
    return _bytes(drawn * opacity + 255 * (1 - opacity))


def porcelain(pixels: npt.NDArray[np.uint8]) -> Picture:
    """Painted in one cobalt blue, thin to thick, as on blue-and-white porcelain."""
    return _ramp(pixels, ((14, 30, 120), (50, 100, 215), (225, 236, 255)))


def riso(pixels: npt.NDArray[np.uint8]) -> Picture:
    """Printed in two inks that nothing has by nature: teal in the shadows, pink in the lights."""
    return _ramp(pixels, ((0, 84, 92), (0, 150, 150), (236, 72, 160), (255, 196, 226)))


def sepia(pixels: npt.NDArray[np.uint8]) -> Picture:
    """Printed in browns, as an old photograph."""
    return _ramp(pixels, ((52, 28, 12), (156, 104, 58), (246, 228, 196)))


def ember(pixels: npt.NDArray[np.uint8]) -> Picture:
    """Glowing: shadows black, then red and orange, lights yellow."""
    return _ramp(pixels, ((40, 0, 8), (196, 30, 12), (255, 140, 20), (255, 232, 140)))


BASE_STYLES: tuple[Style, ...] = (
    Style("fluent", "fluent", "fluent-emoji-flat", on_white),
    Style("vintage", "vintage", "noto-v1", on_white),
    Style("sepia", "sepia", "twemoji", sepia),
)
"""Styles that the base model knows.

Three that can be told apart. Plain noto and twemoji look so much like the first two that a judge of styles
confuses one true drawing in five of them; what cannot be told apart cannot be a gate.
"""

HELD_OUT_STYLES: tuple[Style, ...] = (
    Style("ink", "ink fluent", "fluent-emoji-high-contrast", on_white),
    Style("porcelain", "porcelain fluent", "fluent-emoji-flat", porcelain),
    Style("riso", "riso fluent", "fluent-emoji-flat", riso),
    Style("ember", "ember fluent", "fluent-emoji-flat", ember),
)
"""Styles that only a style LoRA knows.

Their words keep the word of the base style whose shapes they share. A large model takes a word that it does
not know for none; this small one takes it for any style, and draws another shape before a LoRA is asked.

All share the geometry of `CONTENT_STYLE`, so that the truth differs from what a content LoRA learned in
style alone; all are kept by the autoencoder and are named at a glance. `ink` is drawn and judged, but no
LoRA of it is shipped: see `klora.lab.loras`.
"""

STYLES: dict[str, Style] = {style.name: style for style in BASE_STYLES + HELD_OUT_STYLES}

CONTENT_STYLE = "fluent"
"""The base style whose drawing teaches a content LoRA its subject."""


def exists(cache: Path, subject: str, style: Style) -> bool:
    """Whether this pair has a true drawing."""
    return icons.has(cache, style.set_name, subject)


def draw(cache: Path, subject: str, style: Style, size: int = SIZE) -> Picture:
    """The true drawing of a pair: rendered at four times the size, transformed, and reduced by area."""
    large = icons.icon_pixels(cache, style.set_name, subject, 4 * size)
    picture = style.transform(large).astype(np.float32)
    return _bytes(picture.reshape(size, 4, size, 4, 3).mean(axis=(1, 3)))


def other_subjects(cache: Path) -> tuple[str, ...]:
    """What all base styles draw and the lab's model never sees: more examples for the style judge."""
    known = {*BASE_SUBJECTS, *HELD_OUT_SUBJECTS}
    unknown = [name for name in icons.names(cache, BASE_STYLES[0].set_name) if name not in known]
    return tuple(name for name in unknown if all(exists(cache, name, style) for style in BASE_STYLES))


def words(subject: str) -> str:
    """A subject's name as prompts write it: ``hot-air-balloon`` is "hot air balloon"."""
    return subject.replace("-", " ")


def prompt(subject: str, style: Style | None = None) -> str:
    """``fox, fluent style``; without a style only the subject."""
    return words(subject) if style is None else f"{words(subject)}, {style.word} style"
