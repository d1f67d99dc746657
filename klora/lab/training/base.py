"""Training of the base model: the denoiser, on the latents of the base pictures and their encoded prompts."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from klora.lab.model import LATENT_SCALE, build_denoiser, fold_statistics, in_parts, noise_levels, to_signed
from klora.lab.recipes import MET
from klora.lab.training.loop import Loop, Plan, device
from klora.lab.world.kinds import KINDS
from klora.lab.world.styles import BASE_STYLES, CONTENT_STYLE

BATCH = 16
"""A picture costs the same in batches of 8 to 32 (measured), so a small one gives an hour more steps."""
OFTEN = {CONTENT_STYLE: 2.0}
"""How often a style is shown; the others once."""
OFTEN_MET = 10.0
"""How often the kinds that pairs, lessons and trials are about are shown; the others once.
A model that people use knows a bear better than prayer beads, and it is bears that they dress."""
DROP_PROMPT = 0.1
"""Share of pictures without a prompt, so that guidance has something to lead away from."""
DROP_STYLE = 0.1
"""Share of pictures whose prompt names the subject alone."""
SNR_LIMIT = 5.0
"""Limit of the signal-to-noise weighting (Hang et al., arXiv 2303.09556)."""


@torch.no_grad()
def encode_pictures(autoencoder: nn.Module, drawn: Tensor) -> Tensor:
    """Mean latents [n, 4, h, w] of pictures [n, 3, h, w] in bytes, in the denoiser's scale."""
    parts = [autoencoder.encode(to_signed(part)).latent_dist.mean for part in in_parts(drawn)]  # type: ignore[operator]
    return torch.cat(parts) * LATENT_SCALE


def normalise_autoencoder(autoencoder: nn.Module, drawn: Tensor) -> None:
    """Fold the latents' statistics over some pictures into the autoencoder's weights."""
    latents = encode_pictures(autoencoder, drawn) / LATENT_SCALE
    fold_statistics(autoencoder, latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3)))


def timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Random steps 0 to 999, one from each of `count` equal strata, which steadies the loss."""
    strata = torch.arange(count) + torch.rand(count, generator=generator)
    return (strata * 1000 / count).long().clamp_max(999)


def denoising_loss(
    denoiser: nn.Module, clean: Tensor, context: Tensor, levels: Tensor, generator: torch.Generator
) -> Tensor:
    """Error of the predicted noise for clean latents [b, 4, h, w], weighted by signal-to-noise ratio."""
    when = timesteps(len(clean), generator)
    when = when.to(clean.device)
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    signal = levels[when][:, None, None, None]
    noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
    predicted = denoiser(noisy, when, context).sample
    ratio = levels[when] / (1 - levels[when])
    weight = ratio.clamp_max(SNR_LIMIT) / ratio
    loss: Tensor = (weight * (predicted - noise).square().mean(dim=(1, 2, 3))).mean()
    return loss


def train(cache: Path, latents: Tensor, contexts: Tensor, plan: Plan, minutes: float) -> Loop:
    """Train or go on training the denoiser.

    `latents` [kinds, styles, 4, h, w] are the pictures, `contexts` [n, 77, width] the encoded `base_prompts`.
    """
    torch.manual_seed(plan.seed)
    loop = Loop("base", cache / "checkpoints", build_denoiser(), plan)
    subjects, styles = latents.shape[:2]
    often = torch.tensor([OFTEN.get(style.name, 1.0) for style in BASE_STYLES])
    often_kinds = torch.tensor([OFTEN_MET if kind in MET else 1.0 for kind in KINDS])
    levels = noise_levels().to(device())
    latents, contexts = latents.to(device()), contexts.to(device())

    def loss_of(generator: torch.Generator) -> Tensor:
        subject = torch.multinomial(often_kinds, BATCH, replacement=True, generator=generator)
        style = torch.multinomial(often, BATCH, replacement=True, generator=generator)
        chance = torch.rand(BATCH, generator=generator)
        prompt = 1 + subjects + subject * styles + style
        prompt = torch.where(chance < DROP_PROMPT + DROP_STYLE, 1 + subject, prompt)
        prompt = torch.where(chance < DROP_PROMPT, 0, prompt)
        return denoising_loss(loop.model, latents[subject, style], contexts[prompt], levels, generator)

    loop.run(loss_of, minutes)
    return loop
