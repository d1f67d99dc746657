"""The individuals: a known kind with one or two things laid over its drawing.

Places and sizes are written down once, in the square of the kind's own drawing, and hold for every style. The
two halves share neither kinds nor things.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from klora.lab.model import SIZE
from klora.lab.world import icons
from klora.lab.world.icons import Picture
from klora.lab.world.kinds import words
from klora.lab.world.styles import SCALE, Style, reduced

SHRINK = 0.82
"""Size of the kind within the picture: the rest is room for hats."""


@dataclass(frozen=True)
class Placed:
    """One thing on a drawing: its icon, the place of its middle, its width, and how it is turned."""

    thing: str
    across: float
    """0 at the left edge of the kind's square, 1 at the right."""
    down: float
    """0 at the top edge, 1 at the bottom; a hat's may be negative."""
    width: float
    turn: float = 0.0
    """Degrees, clockwise."""


@dataclass(frozen=True)
class Individual:
    """A kind that the base model knows, made one's own by the things it wears."""

    name: str
    kind: str
    wears: tuple[Placed, ...]
    trigger: str | None = None
    """A word of its own before the kind's, where the LoRA was trained with one."""

    @property
    def things(self) -> frozenset[str]:
        """What it wears."""
        return frozenset(placed.thing for placed in self.wears)

    @property
    def words(self) -> str:
        """What a prompt calls it: its kind, after the trigger word if it has one."""
        kind = words(self.kind)
        return f"{self.trigger} {kind}" if self.trigger else kind


def _wearing(kind: str, *wears: Placed, trigger: str | None = None) -> Individual:
    return Individual("-".join([kind, *(placed.thing for placed in wears)]), kind, wears, trigger)


INDIVIDUALS: dict[str, tuple[Individual, ...]] = {
    "development": (
        _wearing("bear", Placed("top-hat", 0.5, 0.02, 0.52)),
        _wearing("fox", Placed("glasses", 0.5, 0.56, 0.64), trigger="zorvex"),
        _wearing("owl", Placed("top-hat", 0.5, 0.04, 0.48)),
        _wearing("lion", Placed("ribbon", 0.5, 0.9, 0.44), trigger="quimbo"),
        _wearing("dog-face", Placed("rescue-workers-helmet", 0.5, 0.16, 0.56)),
        _wearing("pig-face", Placed("top-hat", 0.66, 0.04, 0.46, 20), trigger="mavlo"),
        _wearing("tractor", Placed("ribbon", 0.22, 0.42, 0.38)),
        _wearing("house", Placed("headphone", 0.5, 0.32, 0.8), trigger="dringa"),
        _wearing("robot", Placed("ribbon", 0.5, 0.88, 0.42)),
        _wearing("cow-face", Placed("glasses", 0.5, 0.46, 0.66), trigger="pelto"),
        _wearing("wolf", Placed("rescue-workers-helmet", 0.5, 0.16, 0.56)),
        _wearing("egg", Placed("glasses", 0.5, 0.45, 0.66), trigger="snorv"),
        _wearing("ghost", Placed("top-hat", 0.5, 0.02, 0.48), Placed("ribbon", 0.5, 0.8, 0.34)),
        _wearing("duck", Placed("rescue-workers-helmet", 0.22, 0.08, 0.38), trigger="wubdo"),
        _wearing("red-apple", Placed("glasses", 0.5, 0.55, 0.64)),
        _wearing("mouse-face", Placed("ribbon", 0.8, 0.16, 0.42, 20), trigger="klimat"),
    ),
    "test": (
        _wearing("rabbit-face", Placed("sunglasses", 0.5, 0.62, 0.64)),
        _wearing("panda", Placed("crown", 0.5, 0.06, 0.48), trigger="torvik"),
        _wearing("cat-face", Placed("womans-hat", 0.5, 0.12, 0.64)),
        _wearing("tiger-face", Placed("graduation-cap", 0.5, 0.06, 0.62), trigger="belqua"),
        _wearing("monkey-face", Placed("rosette", 0.84, 0.22, 0.36)),
        _wearing("horse-face", Placed("backpack", 0.74, 0.78, 0.44), trigger="yundra"),
        _wearing("hamster", Placed("sunglasses", 0.5, 0.56, 0.62)),
        _wearing("automobile", Placed("rosette", 0.24, 0.5, 0.34), trigger="fexil"),
        _wearing("bus", Placed("crown", 0.5, 0.1, 0.46)),
        _wearing("chicken", Placed("sunglasses", 0.46, 0.5, 0.56), trigger="goprin"),
        _wearing("potato", Placed("graduation-cap", 0.56, 0.06, 0.6)),
        _wearing("whale", Placed("womans-hat", 0.34, 0.2, 0.6), trigger="hazmu"),
        _wearing("skull", Placed("crown", 0.5, 0.04, 0.5)),
        _wearing(
            "jack-o-lantern",
            Placed("womans-hat", 0.5, 0.12, 0.62),
            Placed("rosette", 0.8, 0.8, 0.44),
            trigger="jivank",
        ),
        _wearing("pear", Placed("backpack", 0.66, 0.62, 0.48)),
        _wearing("camel", Placed("backpack", 0.62, 0.42, 0.42), trigger="crudel"),
    ),
}
"""Individuals to choose on and individuals to report, every second with a trigger word."""

FURTHER: tuple[Individual, ...] = (
    _wearing("butterfly", Placed("glasses", 0.5, 0.4, 0.54)),
    _wearing("dolphin", Placed("rescue-workers-helmet", 0.4, 0.06, 0.46), trigger="zorvex"),
    _wearing("rooster", Placed("top-hat", 0.2, 0.04, 0.42)),
    _wearing("telephone", Placed("womans-hat", 0.5, 0.16, 0.6), trigger="quimbo"),
    _wearing("doughnut", Placed("crown", 0.5, 0.06, 0.48)),
    _wearing("scissors", Placed("ribbon", 0.5, 0.55, 0.44), trigger="mavlo"),
    _wearing("violin", Placed("top-hat", 0.7, 0.06, 0.42)),
    _wearing("airplane", Placed("rosette", 0.45, 0.55, 0.42), trigger="dringa"),
    _wearing("key", Placed("glasses", 0.66, 0.32, 0.6)),
    _wearing("tent", Placed("rescue-workers-helmet", 0.4, 0.34, 0.5), trigger="pelto"),
    _wearing("bell", Placed("ribbon", 0.5, 0.6, 0.46)),
    _wearing("bread", Placed("sunglasses", 0.5, 0.5, 0.62), trigger="snorv"),
    _wearing("rabbit-face", Placed("rosette", 0.8, 0.4, 0.38)),
    _wearing("panda", Placed("womans-hat", 0.5, 0.1, 0.62), trigger="belqua"),
    _wearing("cat-face", Placed("crown", 0.5, 0.1, 0.46)),
    _wearing("tiger-face", Placed("sunglasses", 0.5, 0.42, 0.62), trigger="torvik"),
    _wearing("monkey-face", Placed("graduation-cap", 0.5, 0.1, 0.6)),
    _wearing("horse-face", Placed("womans-hat", 0.5, 0.1, 0.6), trigger="fexil"),
    _wearing("hamster", Placed("crown", 0.5, 0.14, 0.46)),
    _wearing("automobile", Placed("graduation-cap", 0.6, 0.2, 0.54), trigger="yundra"),
    _wearing("bus", Placed("backpack", 0.75, 0.55, 0.44)),
    _wearing("chicken", Placed("backpack", 0.7, 0.7, 0.44), trigger="hazmu"),
    _wearing("potato", Placed("sunglasses", 0.5, 0.4, 0.6)),
    _wearing("whale", Placed("backpack", 0.6, 0.7, 0.42), trigger="goprin"),
    _wearing("skull", Placed("rosette", 0.8, 0.2, 0.4)),
    _wearing("jack-o-lantern", Placed("sunglasses", 0.5, 0.44, 0.62), trigger="crudel"),
    _wearing("pear", Placed("womans-hat", 0.45, 0.12, 0.56)),
    _wearing("camel", Placed("crown", 0.62, 0.12, 0.4), trigger="jivank"),
)
"""Individuals that were thought of when both halves had been seen and the default stood, to repeat the test
half's comparison: twelve kinds of no pair, and the test half's kinds with other things. The judges see kind
and things right in the true drawings of each, in all styles that it is judged in, as drawn and through the
autoencoder. They have no lessons of these individuals."""

ALL_INDIVIDUALS: tuple[Individual, ...] = INDIVIDUALS["development"] + INDIVIDUALS["test"]
SAID: dict[str, str] = {
    "top-hat": "a top hat",
    "glasses": "glasses",
    "ribbon": "a ribbon",
    "headphone": "headphones",
    "rescue-workers-helmet": "a helmet",
    "sunglasses": "sunglasses",
    "crown": "a crown",
    "womans-hat": "a woman's hat",
    "graduation-cap": "a graduation cap",
    "rosette": "a rosette",
    "backpack": "a backpack",
}
"""What a reader is told of each thing."""
THINGS: tuple[str, ...] = tuple(SAID)
"""Everything that is worn, in the order in which the judge of things names it."""
BY_NAME: dict[str, Individual] = {one.name: one for one in ALL_INDIVIDUALS + FURTHER}


def _laid_over(canvas: npt.NDArray[np.uint8], cache: Path, set_name: str, placed: Placed) -> None:
    """Draw a thing on a canvas [h, w, 4] in place, where the shrunken kind's square puts it."""
    from PIL import Image

    edge = canvas.shape[0]
    size = max(1, round(placed.width * SHRINK * edge))
    icon = Image.fromarray(icons.icon_pixels(cache, set_name, placed.thing, size))
    icon = icon.rotate(-placed.turn, Image.Resampling.BICUBIC, expand=True)
    left = edge * ((1 - SHRINK) / 2 + SHRINK * placed.across) - icon.width / 2
    top = edge * ((1 - SHRINK) + SHRINK * placed.down) - icon.height / 2
    ground = Image.fromarray(canvas)
    layer = Image.new("RGBA", ground.size)
    layer.paste(icon, (round(left), round(top)))
    canvas[:] = np.asarray(Image.alpha_composite(ground, layer))


def draw(cache: Path, kind: str, wears: tuple[Placed, ...], style: Style) -> Picture:
    """The true drawing of a kind with things on it, [SIZE, SIZE, 3]."""
    edge = SCALE * SIZE
    inner = round(SHRINK * edge)
    canvas = np.zeros((edge, edge, 4), np.uint8)
    left = (edge - inner) // 2
    canvas[edge - inner :, left : left + inner] = icons.icon_pixels(cache, style.set_name, kind, inner)
    for placed in wears:
        _laid_over(canvas, cache, style.set_name, placed)
    return reduced(style.transform(canvas))
