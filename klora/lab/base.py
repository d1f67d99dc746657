"""Training of the base model: the denoiser, on the latents of the base pictures and their encoded prompts."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from klora.lab import world
from klora.lab.autoencoder import pictures, to_signed
from klora.lab.loop import Loop, Plan, device
from klora.lab.model import LATENT_SCALE, build_denoiser, fold_statistics, in_parts, noise_levels

BATCH = 32
DROP_PROMPT = 0.1
"""Share of pictures without a prompt, so that guidance has something to lead away from."""
DROP_STYLE = 0.1
"""Share of pictures whose prompt names the subject alone."""
SNR_LIMIT = 5.0
"""Limit of the signal-to-noise weighting (Hang et al., arXiv 2303.09556)."""


@torch.no_grad()
def encode_pictures(autoencoder: nn.Module, drawn: Tensor) -> Tensor:
    """Mean latents [n, 4, 8, 8] of pictures [n, 3, 64, 64] in bytes, in the denoiser's scale."""
    parts = [autoencoder.encode(to_signed(part)).latent_dist.mean for part in in_parts(drawn)]  # type: ignore[operator]
    return torch.cat(parts) * LATENT_SCALE


def normalise_autoencoder(autoencoder: nn.Module, drawn: Tensor) -> None:
    """Fold the latents' statistics over some pictures into the autoencoder's weights."""
    latents = encode_pictures(autoencoder, drawn) / LATENT_SCALE
    fold_statistics(autoencoder, latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3)))


def base_pictures(cache: Path) -> Tensor:
    """Every base subject in every base style, [n, 3, 64, 64] in bytes; rendered once."""
    path = cache / "base-pictures.pt"
    if not path.exists():
        torch.save(pictures(cache, world.BASE_SUBJECTS, world.BASE_STYLES), path)
    kept: Tensor = torch.load(path, weights_only=True)
    return kept


def base_latents(cache: Path, autoencoder: nn.Module) -> Tensor:
    """Latents of the base pictures, [subjects, styles, 4, 8, 8]; computed once."""
    path = cache / "latents.pt"
    if not path.exists():
        torch.save(encode_pictures(autoencoder, base_pictures(cache)), path)
    kept: Tensor = torch.load(path, weights_only=True)
    return kept.reshape(len(world.BASE_SUBJECTS), len(world.BASE_STYLES), 4, 8, 8)


def timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Random steps 0 to 999, one from each of `count` equal strata, which steadies the loss."""
    strata = torch.arange(count) + torch.rand(count, generator=generator)
    return (strata * 1000 / count).long().clamp_max(999)


def denoising_loss(
    denoiser: nn.Module, clean: Tensor, context: Tensor, levels: Tensor, generator: torch.Generator
) -> Tensor:
    """Error of the predicted noise for clean latents [b, 4, 8, 8], weighted by signal-to-noise ratio."""
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


def train(
    cache: Path,
    latents: Tensor,
    contexts: Tensor,
    plan: Plan,
    minutes: float,
    start: nn.Module | None = None,
    often: Tensor | None = None,
    batch: int = BATCH,
    often_subjects: Tensor | None = None,
) -> Loop:
    """Train or go on training the denoiser.

    `latents` [subjects, styles, 4, h, w] are the pictures, `contexts` [n, 77, width] the encoded
    `base_prompts`; `start` is a denoiser to begin with, where no checkpoint is kept; `often` [styles] says
    how often each style is shown, `often_subjects` [subjects] each subject, all alike where they are not
    given; a step learns from `batch` pictures.
    """
    torch.manual_seed(plan.seed)
    loop = Loop("base", cache / "checkpoints", start or build_denoiser(), plan)
    subjects, styles = latents.shape[:2]
    shares = torch.ones(styles) if often is None else often
    subject_shares = torch.ones(subjects) if often_subjects is None else often_subjects
    levels = noise_levels().to(device())
    latents, contexts = latents.to(device()), contexts.to(device())

    def loss_of(generator: torch.Generator) -> Tensor:
        subject = torch.multinomial(subject_shares, batch, replacement=True, generator=generator)
        style = torch.multinomial(shares, batch, replacement=True, generator=generator)
        chance = torch.rand(batch, generator=generator)
        prompt = 1 + subjects + subject * styles + style
        prompt = torch.where(chance < DROP_PROMPT + DROP_STYLE, 1 + subject, prompt)
        prompt = torch.where(chance < DROP_PROMPT, 0, prompt)
        return denoising_loss(loop.model, latents[subject, style], contexts[prompt], levels, generator)

    loop.run(loss_of, minutes)
    return loop
