"""How the drawings that judges learn from are distorted: moved, recoloured, blurred and noisy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def distort(seen: Tensor, generator: torch.Generator, colours: bool) -> Tensor:
    """Pictures [b, 3, h, w] in -1 to 1 shifted, turned, resized, blurred and noisy.

    With `colours` also tinted, grey, negative, in two or three random colours, or as outlines; without,
    turned and noisy half as much, as style is in details.
    No flips: the truth stays unambiguous.
    """
    count = len(seen)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    strength = 1.0 if colours else 0.5
    turn, size = uniform(-0.2 * strength, 0.2 * strength), uniform(0.85, 1.2)
    stretch = uniform(0.9, 1.1)
    cosine, sine = size * turn.cos(), size * turn.sin()
    shift = 0.12 * (2 * torch.rand(count, 2, generator=generator) - 1)
    rows = [
        torch.stack([cosine * stretch, -sine, shift[:, 0]], 1),
        torch.stack([sine, cosine / stretch, shift[:, 1]], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1), list(seen.shape), align_corners=False)
    moved = functional.grid_sample(seen, grid, padding_mode="border", align_corners=False)
    if colours:
        moved = _recolour(moved, generator)
    soft = functional.avg_pool2d(moved, 3, stride=1, padding=1, count_include_pad=False)
    blur = uniform(-0.5, 1).clamp_min(0)[:, None, None, None]
    moved = moved + blur * (soft - moved)
    noise = torch.randn(moved.shape, generator=generator) * uniform(0, 0.1 * strength)[:, None, None, None]
    return (moved + noise).clamp(-1, 1)


def _recolour(seen: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the pictures stay; the rest is recoloured at random, so that shape must count."""
    kind = torch.randint(10, (len(seen),), generator=generator)
    made = seen.clone()
    for which, paint in ((5, _tinted), (6, _grey), (7, _ramped), (8, _ramped), (9, _outlined)):
        chosen = kind == which
        if chosen.any():
            made[chosen] = paint(seen[chosen], generator)
    negative = (torch.rand(len(seen), generator=generator) < 0.1)[:, None, None, None]
    return torch.where(negative, -made, made)


def _tinted(seen: Tensor, generator: torch.Generator) -> Tensor:
    """Colour channels mixed at random."""
    mix = torch.eye(3) + 0.25 * torch.randn(len(seen), 3, 3, generator=generator)
    return torch.einsum("bij,bjhw->bihw", mix / mix.sum(-1, keepdim=True), seen)


def _grey(seen: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness alone."""
    return seen.mean(1, keepdim=True).expand_as(seen)


def _between(value: Tensor, dark: Tensor, light: Tensor) -> Tensor:
    """A colour between two [b, 3, 1, 1] by a value [b, 1, h, w] from 0 to 1."""
    return dark + (light - dark) * value


def _colours(count: int, generator: torch.Generator) -> Tensor:
    """Random colours, [count, 3, 1, 1]."""
    return 2 * torch.rand(count, 3, 1, 1, generator=generator) - 1


def _ramped(seen: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness turned into three random colours, dark to light, on white."""
    count = len(seen)
    value = seen.mean(1, keepdim=True) / 2 + 0.5
    dark, middle, light = (_colours(count, generator) for _ in range(3))
    dark, light = 0.5 * dark - 0.5, 0.4 * light + 0.6
    low = _between((2 * value).clamp_max(1), dark, middle)
    made = _between((2 * value - 1).clamp_min(0), low, light)
    return torch.where(seen.amin(1, keepdim=True) > 0.98, 1.0, made)


def _outlined(seen: Tensor, generator: torch.Generator) -> Tensor:
    """Outlines in one random colour on another."""
    across = functional.pad((seen[..., 1:] - seen[..., :-1]).abs().amax(1, keepdim=True), (0, 1))
    down = functional.pad((seen[..., 1:, :] - seen[..., :-1, :]).abs().amax(1, keepdim=True), (0, 0, 0, 1))
    line = (4 * torch.maximum(across, down) - 0.4).clamp(0, 1)
    count = len(seen)
    return _between(line, 0.5 * _colours(count, generator) - 0.5, 0.5 * _colours(count, generator) + 0.5)
