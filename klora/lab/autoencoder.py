"""Training of the KL autoencoder: 64 x 64 x 3 pictures to 8 x 8 x 4 latents and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from klora.lab import world
from klora.lab.loop import Loop, Plan, device
from klora.lab.model import FIRST, LATENT_SCALE, Shape, build_autoencoder, in_parts

BATCH = 8
KL_WEIGHT = 1e-6
CHROMA_WEIGHT = 1.5
FOREGROUND_WEIGHT = 1.0


def pictures(cache: Path, subjects: tuple[str, ...], styles: tuple[world.Style, ...]) -> Tensor:
    """True drawings of all pairs that exist, [n, 3, 64, 64] in bytes, subject by subject."""
    drawn = [
        world.draw(cache, subject, style)
        for subject in subjects
        for style in styles
        if world.exists(cache, subject, style)
    ]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous()


def cached_pictures(cache: Path) -> Tensor:
    """Drawings of the base subjects in every style, rendered once and kept in the cache."""
    path = cache / "pictures.pt"
    if not path.exists():
        torch.save(pictures(cache, world.BASE_SUBJECTS, tuple(world.STYLES.values())), path)
    kept: Tensor = torch.load(path, weights_only=True)
    return kept


def to_signed(drawn: Tensor) -> Tensor:
    """Bytes to floats from -1 to 1."""
    return drawn.float() / 127.5 - 1


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
    """Loss of one batch [b, 3, 64, 64] in -1 to 1: reconstruction and a whisper of KL."""
    with torch.autocast(true.device.type, dtype=torch.bfloat16):
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
    """Pictures through the mean latent and back, [n, 3, 64, 64] in -1 to 1."""
    parts = [model.decode(model.encode(part).latent_dist.mean).sample for part in in_parts(true, batch)]  # type: ignore[operator]
    return torch.cat(parts)


@torch.no_grad()
def disturb(model: nn.Module, true: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Pictures [n, 3, 64, 64] in -1 to 1 by way of latents with noise on them, as a sampler leaves some.

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
    data = cached_pictures(cache)
    loop = Loop("autoencoder", cache / "checkpoints", build_autoencoder(), plan)

    def loss_of(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(data), (BATCH,), generator=generator)
        return autoencoder_loss(loop.model, to_signed(data[chosen]).to(device()), generator)

    loop.run(loss_of, minutes)
    return loop


def kept_average(cache: Path, name: str) -> dict[str, Tensor]:
    """The averaged weights of a training's checkpoint."""
    state = torch.load(cache / "checkpoints" / f"{name}.pt", weights_only=True, map_location="cpu")
    kept: dict[str, Tensor] = state["average"]
    return kept


def refine(
    cache: Path, drawn: Tensor, plan: Plan, minutes: float, shape: Shape = FIRST, batch: int = BATCH
) -> Loop:
    """Go on training the decoder alone, for pictures [n, 3, h, w] in bytes; latents stay as they are.

    The base model can so learn at the same time. Starts from the autoencoder's averaged weights.
    """
    torch.manual_seed(plan.seed)
    model = build_autoencoder(shape)
    model.load_state_dict(kept_average(cache, "autoencoder"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("decoder.", "post_quant_conv.")))
    with torch.no_grad():
        found = [model.encode(to_signed(part)).latent_dist for part in in_parts(drawn)]  # type: ignore[operator]
        mean, deviation = torch.cat([p.mean for p in found]), torch.cat([p.std for p in found])
    loop = Loop("decoder", cache / "checkpoints", model, plan)

    def loss_of(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(drawn), (batch,), generator=generator)
        noise = torch.randn(mean[chosen].shape, generator=generator)
        latent = (mean[chosen] + deviation[chosen] * noise).to(device())
        with torch.autocast(latent.device.type, dtype=torch.bfloat16):
            made = loop.model.decode(latent).sample  # type: ignore[operator]
        return picture_loss(made.float(), to_signed(drawn[chosen]).to(device()))

    loop.run(loss_of, minutes)
    return loop
