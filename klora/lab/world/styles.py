"""The ways to draw: four that the base model knows, eight that only a style LoRA knows.

A style turns a drawing with opacity, `SCALE` times as large as the picture, into a picture. Screens repeat
every 8 pixels of the reduced picture, which is the grid of the latents, so that the autoencoder keeps them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage  # type: ignore[import-untyped]

from klora.lab.world.icons import Picture

Values = npt.NDArray[np.floating[Any]]
Pixels = npt.NDArray[np.uint8]
"""Height x width x 4: red, green, blue, opacity."""

SCALE = 4
"""Drawings are rendered this many times larger, transformed, and reduced by area."""


@dataclass(frozen=True)
class Style:
    """One way to draw: the icon set, the word that prompts use, and what is done to the drawing."""

    name: str
    word: str
    set_name: str
    transform: Callable[[Pixels], Picture]


_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def _colour(*channels: int) -> Values:
    return np.array(channels, np.float32)


def _mixed(ground: Values, ink: Values, amount: Values) -> Values:
    """Ink laid on a ground by an amount [h, w] from 0 to 1."""
    mixed: Values = ground + (ink - ground) * amount[..., None]
    return mixed


def _bytes(values: Values) -> Picture:
    rounded: Picture = np.clip(values, 0, 255).round().astype(np.uint8)
    return rounded


def on_white(pixels: Pixels) -> Picture:
    """Lay a drawing with opacity on white."""
    opacity = pixels[..., 3:].astype(np.float32) / 255
    return _bytes(pixels[..., :3] * opacity + 255 * (1 - opacity))


def _opacity(pixels: Pixels) -> Values:
    """Opacity [h, w] from 0 to 1."""
    opacity: Values = pixels[..., 3].astype(np.float32) / 255
    return opacity


def _darkness(pixels: Pixels) -> Values:
    """How dark a drawing on white is, [h, w] from 0 to 1."""
    dark: Values = 1 - on_white(pixels).astype(np.float32) @ _LUMA / 255
    return dark


def _edges(pixels: Pixels, width: int) -> Values:
    """Lines [h, w] from 0 to 1 where colour or opacity changes, about `width` pixels wide."""
    seen = np.concatenate([on_white(pixels), pixels[..., 3:]], axis=-1).astype(np.float32) / 255
    soft = ndimage.gaussian_filter(seen, (1.5, 1.5, 0))
    slope = np.hypot(ndimage.sobel(soft, 0), ndimage.sobel(soft, 1)).max(axis=-1)
    thick = ndimage.maximum_filter((slope > 0.35).astype(np.float32), footprint=_disc(width // 2 - 1))
    lines: Values = ndimage.gaussian_filter(thick, 1.0)
    return lines


def _disc(radius: int) -> npt.NDArray[np.bool_]:
    across = np.arange(-radius, radius + 1)
    disc: npt.NDArray[np.bool_] = across[:, None] ** 2 + across**2 <= radius**2
    return disc


def _grown(opacity: Values, radius: int) -> Values:
    """A silhouette [h, w] made larger on all sides."""
    grown: Values = ndimage.maximum_filter(opacity, footprint=_disc(radius))
    return grown


def _flat(pixels: Pixels, colour: Values) -> Values:
    """A ground of one colour, as large as a drawing."""
    return np.broadcast_to(colour, (*pixels.shape[:2], 3)).astype(np.float32)


def _ramp(pixels: Pixels, stops: tuple[tuple[int, int, int], ...]) -> Picture:
    """Brightness turned into a row of colours, dark to light, on white paper.

    White paper, as the autoencoder keeps it; on coloured grounds it loses 8 decibels and more.
    """
    brightness = on_white(pixels).astype(np.float32) @ _LUMA
    places, colours = np.linspace(0, 255, len(stops)), np.array(stops, np.float32)
    drawn = np.stack([np.interp(brightness, places, colours[:, i]) for i in range(3)], axis=-1)
    opacity = pixels[..., 3:].astype(np.float32) / 255
    return _bytes(drawn * opacity + 255 * (1 - opacity))


def porcelain(pixels: Pixels) -> Picture:
    """Painted in one cobalt blue, thin to thick, as on blue-and-white porcelain."""
    return _ramp(pixels, ((14, 30, 120), (50, 100, 215), (225, 236, 255)))


def riso(pixels: Pixels) -> Picture:
    """Printed in two inks that nothing has by nature: teal in the shadows, pink in the lights."""
    return _ramp(pixels, ((0, 84, 92), (0, 150, 150), (236, 72, 160), (255, 196, 226)))


def chalk(pixels: Pixels) -> Picture:
    """Pale chalk on a blackboard: what is dark in the drawing stays the board's green."""
    board = _flat(pixels, _colour(30, 62, 54))
    bright = (0.35 + 0.65 * (1 - _darkness(pixels))) * _opacity(pixels)
    return _bytes(_mixed(board, _colour(246, 240, 222), bright))


def outline(pixels: Pixels) -> Picture:
    """Blue lines where colours meet, nothing between them, as in a colouring book."""
    paper = _flat(pixels, _colour(255, 255, 255))
    return _bytes(_mixed(paper, _colour(36, 52, 140), _edges(pixels, 8)))


def engraving(pixels: Pixels) -> Picture:
    """Brown hatching on cream paper, in one direction for greys and crossed for darks, with an outline."""
    height, width = pixels.shape[:2]
    down, across = np.mgrid[:height, :width].astype(np.float32)
    dark, inside = 0.15 + 0.85 * _darkness(pixels), _opacity(pixels)
    period = 8 * SCALE
    one, other = ((np.mod(along, period) / period - 0.5) for along in (across + down, across - down))
    first = np.clip((0.62 * dark - np.abs(one)) * 16 + 0.5, 0, 1)
    second = np.clip((0.9 * (dark - 0.45) - np.abs(other)) * 16 + 0.5, 0, 1)
    ink = np.maximum(np.maximum(first, second) * inside, _edges(pixels, 6))
    return _bytes(_mixed(_flat(pixels, _colour(250, 242, 222)), _colour(74, 44, 26), ink))


def halftone(pixels: Pixels) -> Picture:
    """One screen of magenta dots, larger where it is darker, and thin outlines, on pale yellow."""
    height, width = pixels.shape[:2]
    down, across = np.mgrid[:height, :width].astype(np.float32)
    period = 8 * SCALE
    dark = ndimage.gaussian_filter(0.12 + 0.88 * _darkness(pixels), 3)
    u, v = ((np.mod(along, period) / period - 0.5) for along in (across + down, across - down))
    dots = np.clip((0.56 * np.sqrt(dark) - np.hypot(u, v)) * 12 + 0.5, 0, 1) * _opacity(pixels)
    ink = np.maximum(dots, 0.9 * _edges(pixels, 6))
    return _bytes(_mixed(_flat(pixels, _colour(255, 246, 190)), _colour(196, 18, 108), ink))


def poster(pixels: Pixels) -> Picture:
    """Few, muted colours and a long flat shadow to the lower right, on a mint ground."""
    opacity = _opacity(pixels)
    shadow, step = opacity.copy(), 1
    while step < 128:
        moved = np.zeros_like(shadow)
        moved[step:, step:] = shadow[:-step, :-step]
        shadow, step = np.maximum(shadow, moved), 2 * step
    ground = _mixed(_flat(pixels, _colour(190, 232, 214)), _colour(120, 186, 170), shadow)
    seen = on_white(pixels).astype(np.float32)
    grey = (seen @ _LUMA)[..., None]
    muted = np.round((0.55 * seen + 0.45 * grey) / 64) * 64 * 0.86 + 26
    return _bytes(ground + (muted - ground) * opacity[..., None])


def neon(pixels: Pixels) -> Picture:
    """Glowing tubes along the edges, in the drawing's own hues made bright, on night blue."""
    lines = _edges(pixels, 10)
    seen = ndimage.gaussian_filter(on_white(pixels).astype(np.float32), (6, 6, 0))
    strongest = seen.max(axis=-1, keepdims=True)
    pure = np.clip((seen - 0.6 * seen.min(axis=-1, keepdims=True)) / (0.4 * strongest + 1), 0, 1)
    hue = 60 + 195 * pure / np.maximum(pure.max(axis=-1, keepdims=True), 0.05)
    night = _flat(pixels, _colour(16, 12, 44))
    glow = np.clip(1.6 * ndimage.gaussian_filter(lines, 12), 0, 0.55)
    return _bytes(_mixed(_mixed(night, hue, glow), hue, lines))


def cutout(pixels: Pixels) -> Picture:
    """Cut from faded paper with a white rim, its shadow on ribbed cardboard."""
    height, width = pixels.shape[:2]
    down = np.mgrid[:height, :width][0].astype(np.float32)
    ribs = np.sin(2 * np.pi * down / (8 * SCALE))[..., None]
    board = _colour(196, 160, 116) + 11 * ribs
    opacity = _opacity(pixels)
    rim = _grown(opacity, 14)
    shade = 0.5 * ndimage.gaussian_filter(np.roll(rim, (14, 10), (0, 1)), 6)
    ground = _mixed(_mixed(board, _colour(70, 46, 28), shade), _colour(250, 248, 240), rim)
    faded = 0.72 * on_white(pixels).astype(np.float32) + 0.28 * _colour(238, 214, 176)
    return _bytes(ground + (faded - ground) * opacity[..., None])


BASE_STYLES: tuple[Style, ...] = (
    Style("fluent", "fluent", "fluent-emoji-flat", on_white),
    Style("ink", "ink", "fluent-emoji-high-contrast", on_white),
    Style("vintage", "vintage", "noto-v1", on_white),
    Style("chalk", "chalk", "twemoji", chalk),
)
"""Styles that the base model knows: three geometries, white and dark grounds."""

OTHER_HANDS: tuple[Style, ...] = tuple(
    Style(f"{set_name}, {ground.__name__}", set_name, set_name, ground)
    for set_name in ("noto", "emojione", "fxemoji", "streamline-emojis")
    for ground in (on_white, chalk)
)
"""Drawings of further designers, which are no style of the lab: only the judge of kinds learns from them, so
that it knows a kind in a drawing that it never saw."""


def _held_out(name: str, transform: Any, word: str | None = None) -> Style:
    """A style over the shapes of `CONTENT_STYLE`, whose word is beside its own (``name`` if none is given).

    The word must leave the base model's kinds alone: beside "halftone", three tokens, it draws few of them.
    """
    return Style(name, f"{word or name} fluent", "fluent-emoji-flat", transform)


STYLES_OF_HALF: dict[str, tuple[Style, ...]] = {
    "development": (
        _held_out("riso", riso, "retro"),
        _held_out("engraving", engraving),
        _held_out("poster", poster, "shadow"),
        _held_out("neon", neon),
    ),
    "test": (
        _held_out("porcelain", porcelain),
        _held_out("halftone", halftone, "dotted"),
        _held_out("outline", outline),
        _held_out("cutout", cutout),
    ),
}
"""Styles that only a style LoRA knows, for choosing and for reporting."""

HELD_OUT_STYLES: tuple[Style, ...] = STYLES_OF_HALF["development"] + STYLES_OF_HALF["test"]
STYLES: dict[str, Style] = {style.name: style for style in BASE_STYLES + HELD_OUT_STYLES}
STYLE_NAMES: tuple[str, ...] = tuple(STYLES)
CONTENT_STYLE = "fluent"
"""The base style whose drawings teach a content LoRA."""


def reduced(large: Picture) -> Picture:
    """A picture reduced by area by the factor `SCALE`."""
    edge = large.shape[0] // SCALE
    return _bytes(large.reshape(edge, SCALE, edge, SCALE, 3).astype(np.float32).mean(axis=(1, 3)))
