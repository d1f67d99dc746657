"""Training of the base model: the denoiser, on the latents of the base pictures and their encoded prompts."""

from __future__ import annotations

from dataclasses import dataclass
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
OFTEN = {CONTENT_STYLE: 2.0, "vintage": 1.5, "chalk": 2.0}
"""How often a style is shown; the others once. Vintage and chalk are learnt more slowly."""
UNKNOWN_WORD = 0.5
"""In `CONTENT_STYLE`, share of pictures of the kinds that pairs are about with an unknown word."""
OFTEN_MET = 50.0
"""How often the kinds that pairs, lessons and trials are about are shown; the others once.
A model that people use knows a bear better than prayer beads, and it is bears that they dress."""
DROP_PROMPT = 0.1
"""Share of pictures without a prompt, so that guidance has something to lead away from."""
DROP_STYLE = 0.1
"""Share of pictures whose prompt names the subject alone."""
SNR_LIMIT = 5.0
"""Limit of the signal-to-noise weighting (Hang et al., arXiv 2303.09556)."""
NOISY_LIMIT = 16.0
"""Limit of what the base model's noisy steps count more. There the prompt decides what the picture will be,
and an error of it is small in terms of noise; 1 / signal makes it one of velocity (Salimans and Ho, 2022)."""


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
    denoiser: nn.Module,
    clean: Tensor,
    context: Tensor,
    levels: Tensor,
    generator: torch.Generator,
    noisy_limit: float = 1.0,
) -> Tensor:
    """Error of the predicted noise for clean latents [b, 4, h, w], weighted by signal-to-noise ratio.

    Noisy steps count up to ``noisy_limit`` times as much.
    """
    when = timesteps(len(clean), generator)
    when = when.to(clean.device)
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    signal = levels[when][:, None, None, None]
    noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
    predicted = denoiser(noisy, when, context).sample
    ratio = levels[when] / (1 - levels[when])
    weight = ratio.clamp_max(SNR_LIMIT) / ratio * (1 / levels[when]).clamp_max(noisy_limit)
    loss: Tensor = (weight * (predicted - noise).square().mean(dim=(1, 2, 3))).mean()
    return loss


@dataclass(frozen=True)
class Said:
    """Encoded prompts: the `base_prompts` [n, 77, width], and for each of `MET`, in this order, as many
    prompts with unknown words in `CONTENT_STYLE`, [kinds, prompts, 77, width].
    """

    plain: Tensor
    unknown: Tensor

    def contexts(self, subject: Tensor, style: Tensor, styles: int, generator: torch.Generator) -> Tensor:
        """What the denoiser reads for kinds and styles by their numbers, each [b]; [b, 77, width]."""
        chance = torch.rand(len(subject), generator=generator)
        prompt = 1 + len(KINDS) + subject * styles + style
        prompt = torch.where(chance < DROP_PROMPT + DROP_STYLE, 1 + subject, prompt)
        context = self.plain[torch.where(chance < DROP_PROMPT, 0, prompt)]
        place = _PLACE_IN_MET[subject]
        number = torch.randint(self.unknown.shape[1], (len(subject),), generator=generator)
        is_unknown = (place >= 0) & (style == _CONTENT_STYLE) & (chance > 1 - UNKNOWN_WORD)
        return torch.where(is_unknown[:, None, None], self.unknown[place, number], context)


_PLACE_IN_MET = torch.tensor([MET.index(kind) if kind in MET else -1 for kind in KINDS])
_CONTENT_STYLE = [style.name for style in BASE_STYLES].index(CONTENT_STYLE)


def train(cache: Path, latents: Tensor, said: Said, plan: Plan, minutes: float) -> Loop:
    """Train or go on training the denoiser on `latents` [kinds, styles, 4, h, w] of the pictures."""
    torch.manual_seed(plan.seed)
    loop = Loop("base", cache / "checkpoints", build_denoiser(), plan)
    styles = latents.shape[1]
    often = torch.tensor([OFTEN.get(style.name, 1.0) for style in BASE_STYLES])
    often_kinds = torch.tensor([OFTEN_MET if kind in MET else 1.0 for kind in KINDS])
    levels = noise_levels().to(device())
    latents = latents.to(device())

    def loss_of(generator: torch.Generator) -> Tensor:
        subject = torch.multinomial(often_kinds, BATCH, replacement=True, generator=generator)
        style = torch.multinomial(often, BATCH, replacement=True, generator=generator)
        clean = latents[subject, style]
        context = said.contexts(subject, style, styles, generator).to(device())
        return denoising_loss(loop.model, clean, context, levels, generator, NOISY_LIMIT)

    loop.run(loss_of, minutes)
    return loop
