"""Training of world 2's autoencoder: 128 x 128 x 3 pictures to 16 x 16 x 4 latents and back."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from klora.lab.autoencoder import autoencoder_loss, to_signed
from klora.lab.loop import Loop, Plan, device
from klora.lab.model import LATENT_FACTOR, SECOND, build_autoencoder
from klora.lab.world2.drawing import kinds_in_style
from klora.lab.world2.kinds import KINDS
from klora.lab.world2.styles import BASE_STYLES, HELD_OUT_STYLES, SIZE

PLAN = Plan(steps=6000, rate=3e-3, warmup=100, fall=0.5, averaging=0.998)
DECODER_PLAN = Plan(steps=2500, rate=2e-3, warmup=20, fall=0.8, averaging=0.995, seed=3)
WHOLE_BATCH, CUT_BATCH = 2, 8
CUT = 64
"""Edge of the pieces that most steps learn from: as many pixels, but four times as many pictures."""
WHOLE_SHARE = 0.3
"""Share of the steps that see whole pictures, as the attention in the middle must know their size."""


def lessons(cache: Path) -> Tensor:
    """Every kind in the base styles and every third in the others, [n, 3, 128, 128] in bytes."""
    drawn = [kinds_in_style(cache, KINDS, style, "kinds") for style in BASE_STYLES]
    drawn += [kinds_in_style(cache, KINDS[::3], style, "third") for style in HELD_OUT_STYLES]
    return torch.cat(drawn)


def pieces(drawn: Tensor, generator: torch.Generator) -> Tensor:
    """A piece of each picture [b, 3, CUT, CUT], cut along the grid of the latents."""
    places = (SIZE - CUT) // LATENT_FACTOR + 1
    corners = LATENT_FACTOR * torch.randint(places, (len(drawn), 2), generator=generator)
    return torch.stack(
        [one[:, top : top + CUT, left : left + CUT] for one, (top, left) in zip(drawn, corners, strict=True)]
    )


def train(cache: Path, plan: Plan, minutes: float) -> Loop:
    """Train or go on training the autoencoder."""
    torch.manual_seed(plan.seed)
    data = lessons(cache)
    loop = Loop("autoencoder", cache / "checkpoints", build_autoencoder(SECOND), plan)

    def loss_of(generator: torch.Generator) -> Tensor:
        whole = bool(torch.rand((), generator=generator) < WHOLE_SHARE)
        chosen = torch.randint(len(data), (WHOLE_BATCH if whole else CUT_BATCH,), generator=generator)
        drawn = data[chosen] if whole else pieces(data[chosen], generator)
        return autoencoder_loss(loop.model, to_signed(drawn).to(device()), generator)

    loop.run(loss_of, minutes)
    return loop
