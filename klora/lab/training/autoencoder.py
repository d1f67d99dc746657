"""Training of the KL autoencoder: 128 x 128 x 3 pictures to 16 x 16 x 4 latents and back."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from klora.lab.model import LATENT_FACTOR, LATENT_SCALE, SIZE, build_autoencoder, in_parts, to_signed
from klora.lab.training.loop import Loop, Plan, device, halved
from klora.lab.world.drawing import kinds_in_style
from klora.lab.world.kinds import KINDS
from klora.lab.world.styles import BASE_STYLES, HELD_OUT_STYLES

PLAN = Plan(steps=6000, rate=3e-3, warmup=100, fall=0.5, averaging=0.998)
DECODER_PLAN = Plan(steps=2500, rate=2e-3, warmup=20, fall=0.8, averaging=0.995, seed=3)
WHOLE_BATCH, CUT_BATCH = 2, 8
CUT = 64
"""Edge of the pieces that most steps learn from: as many pixels, but four times as many pictures."""
WHOLE_SHARE = 0.3
"""Share of the steps that see whole pictures, as the attention in the middle must know their size."""
KL_WEIGHT = 1e-6
CHROMA_WEIGHT = 1.5
FOREGROUND_WEIGHT = 1.0


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


def luma_chroma(error: Tensor) -> tuple[Tensor, Tensor]:
    """Error [b, 3, h, w] in RGB as luma [b, 1, h, w] and colour differences [b, 2, h, w] (ITU-R BT.601)."""
    red, green, blue = error.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return luma[:, None], torch.stack([0.564 * (blue - luma), 0.713 * (red - luma)], 1)


def picture_loss(made: Tensor, true: Tensor) -> Tensor:
    """Absolute and squared error; foreground and hues, where small autoencoders fail first, weigh more."""
    background = true[:, :, :1, :1]
    foreground = ((true - background).abs().amax(1, keepdim=True) > 0.05).float()
    weight = 1 + FOREGROUND_WEIGHT * foreground
    error = made - true
    _, chroma = luma_chroma(error)
    per_pixel = error.abs().mean(1, keepdim=True) + 2 * error.square().mean(1, keepdim=True)
    hue = chroma.abs().mean(1, keepdim=True) + 2 * chroma.square().mean(1, keepdim=True)
    loss: Tensor = (weight * (per_pixel + CHROMA_WEIGHT * hue)).mean()
    return loss


def autoencoder_loss(model: nn.Module, true: Tensor, generator: torch.Generator) -> Tensor:
    """Loss of one batch [b, 3, h, w] in -1 to 1: reconstruction and a whisper of KL."""
    with halved(true.device):
        posterior = model.encode(true).latent_dist  # type: ignore[operator]
        noise = torch.randn(posterior.mean.shape, generator=generator).to(true.device)
        latent = posterior.mean + posterior.std * noise
        made = model.decode(latent).sample  # type: ignore[operator]
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=(1, 2, 3)).mean()
    loss: Tensor = picture_loss(made.float(), true) + KL_WEIGHT * divergence
    return loss


def signal_to_noise(made: Tensor, true: Tensor) -> float:
    """Mean peak signal-to-noise ratio in decibels of pictures in -1 to 1."""
    squared = ((made.clamp(-1, 1) - true) / 2).square().mean(dim=(1, 2, 3))
    return float((-10 * torch.log10(squared.clamp_min(1e-10))).mean())


@torch.no_grad()
def reconstruct(model: nn.Module, true: Tensor, batch: int = 64) -> Tensor:
    """Pictures through the mean latent and back, [n, 3, h, w] in -1 to 1."""
    parts = [model.decode(model.encode(part).latent_dist.mean).sample for part in in_parts(true, batch)]  # type: ignore[operator]
    return torch.cat(parts)


@torch.no_grad()
def disturb(model: nn.Module, true: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Pictures [n, 3, h, w] in -1 to 1 by way of latents with noise on them, as a sampler leaves some.

    Its deviation is drawn for each picture from 0 to `most` times that of the latents themselves.
    """
    made = []
    for part in in_parts(true):
        latents = model.encode(part).latent_dist.mean  # type: ignore[operator]
        deviation = most / LATENT_SCALE * torch.rand(len(part), 1, 1, 1, generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        made.append(model.decode(latents + deviation * noise).sample)  # type: ignore[operator]
    return torch.cat(made)


def train(cache: Path, plan: Plan, minutes: float) -> Loop:
    """Train or go on training the autoencoder."""
    torch.manual_seed(plan.seed)
    data = lessons(cache)
    loop = Loop("autoencoder", cache / "checkpoints", build_autoencoder(), plan)

    def loss_of(generator: torch.Generator) -> Tensor:
        whole = bool(torch.rand((), generator=generator) < WHOLE_SHARE)
        chosen = torch.randint(len(data), (WHOLE_BATCH if whole else CUT_BATCH,), generator=generator)
        drawn = data[chosen] if whole else pieces(data[chosen], generator)
        return autoencoder_loss(loop.model, to_signed(drawn).to(device()), generator)

    loop.run(loss_of, minutes)
    return loop


def kept_average(cache: Path, name: str) -> dict[str, Tensor]:
    """The averaged weights of a training's checkpoint."""
    state = torch.load(cache / "checkpoints" / f"{name}.pt", weights_only=True, map_location="cpu")
    kept: dict[str, Tensor] = state["average"]
    return kept


def refine(cache: Path, drawn: Tensor, plan: Plan, minutes: float) -> Loop:
    """Go on training the decoder alone, for pictures [n, 3, h, w] in bytes; latents stay as they are.

    The base model can so learn at the same time. Starts from the autoencoder's averaged weights.
    """
    torch.manual_seed(plan.seed)
    model = build_autoencoder()
    model.load_state_dict(kept_average(cache, "autoencoder"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("decoder.", "post_quant_conv.")))
    with torch.no_grad():
        found = [model.encode(to_signed(part)).latent_dist for part in in_parts(drawn)]  # type: ignore[operator]
        mean, deviation = torch.cat([p.mean for p in found]), torch.cat([p.std for p in found])
    loop = Loop("decoder", cache / "checkpoints", model, plan)

    def loss_of(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(drawn), (WHOLE_BATCH,), generator=generator)
        noise = torch.randn(mean[chosen].shape, generator=generator)
        latent = (mean[chosen] + deviation[chosen] * noise).to(device())
        with halved(latent.device):
            made = loop.model.decode(latent).sample  # type: ignore[operator]
        return picture_loss(made.float(), to_signed(drawn[chosen]).to(device()))

    loop.run(loss_of, minutes)
    return loop
