"""Training of the base model: the denoiser and the text encoder, on the latents of the base pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from klora.lab import tokens, world
from klora.lab.autoencoder import pictures, to_signed
from klora.lab.loop import Loop, Plan
from klora.lab.model import LATENT_SCALE, build_denoiser, build_text_encoder, fold_statistics, noise_levels

BATCH = 32
DROP_PROMPT = 0.1
"""Share of pictures without a prompt, so that guidance has something to lead away from."""
DROP_STYLE = 0.1
"""Share of pictures whose prompt names the subject alone."""
SNR_LIMIT = 5.0
"""Limit of the signal-to-noise weighting (Hang et al., arXiv 2303.09556)."""


@dataclass
class Words:
    """The rows of CLIP's vocabulary that training meets, so that it carries 400 word vectors and not 49,408."""

    numbers: Tensor
    """Token numbers in ascending order, [rows]."""

    @classmethod
    def of(cls, prompts: list[str]) -> Words:
        """The words of some prompts, start and end among them."""
        return cls(tokens.encode(prompts).unique())

    def rows(self, encoded: Tensor) -> Tensor:
        """Token numbers to rows, same shape."""
        return torch.searchsorted(self.numbers, encoded)


def base_prompts() -> list[str]:
    """Every prompt that the base training uses."""
    pairs = [world.prompt(s, style) for s in world.BASE_SUBJECTS for style in world.BASE_STYLES]
    return ["", *(world.prompt(s) for s in world.BASE_SUBJECTS), *pairs]


@torch.no_grad()
def encode_pictures(autoencoder: nn.Module, drawn: Tensor) -> Tensor:
    """Mean latents [n, 4, 8, 8] of pictures [n, 3, 64, 64] in bytes, in the denoiser's scale."""
    parts = [autoencoder.encode(to_signed(part)).latent_dist.mean for part in drawn.split(64)]  # type: ignore[operator]
    return torch.cat(parts) * LATENT_SCALE


def normalise_autoencoder(autoencoder: nn.Module, drawn: Tensor) -> None:
    """Fold the latents' statistics over some pictures into the autoencoder's weights."""
    latents = encode_pictures(autoencoder, drawn) / LATENT_SCALE
    fold_statistics(autoencoder, latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3)))


def base_latents(cache: Path, autoencoder: nn.Module) -> Tensor:
    """Latents of every base subject in every base style, [subjects, styles, 4, 8, 8]; computed once."""
    path = cache / "latents.pt"
    if not path.exists():
        drawn = pictures(cache, world.BASE_SUBJECTS, world.BASE_STYLES)
        torch.save(encode_pictures(autoencoder, drawn), path)
    kept: Tensor = torch.load(path, weights_only=True)
    return kept.reshape(len(world.BASE_SUBJECTS), len(world.BASE_STYLES), 4, 8, 8)


def timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Random steps 0 to 999, one from each of `count` equal strata, which steadies the loss."""
    strata = torch.arange(count) + torch.rand(count, generator=generator)
    return (strata * 1000 / count).long().clamp_max(999)


def denoising_loss(
    denoiser: nn.Module, clean: Tensor, context: Tensor, levels: Tensor, generator: torch.Generator
) -> Tensor:
    """Error of the predicted noise for clean latents [b, 4, 8, 8], weighted by the limited signal-to-noise ratio."""
    when = timesteps(len(clean), generator)
    noise = torch.randn(clean.shape, generator=generator)
    signal = levels[when][:, None, None, None]
    noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
    predicted = denoiser(noisy, when, context).sample
    ratio = levels[when] / (1 - levels[when])
    weight = ratio.clamp_max(SNR_LIMIT) / ratio
    return (weight * (predicted - noise).square().mean(dim=(1, 2, 3))).mean()


def prompt_table(choices: Sequence[str], words: Words) -> Tensor:
    """Rows of some prompts, [n, 77]."""
    return words.rows(tokens.encode(list(choices)))


def train(cache: Path, latents: Tensor, plan: Plan, minutes: float, name: str = "base") -> Loop:
    """Train or go on training denoiser and text encoder on latents [subjects, styles, 4, 8, 8]."""
    torch.manual_seed(plan.seed)
    words = Words.of(base_prompts())
    networks = nn.ModuleDict({"denoiser": build_denoiser(), "text_encoder": build_text_encoder(len(words.numbers))})
    loop = Loop(name, cache / "checkpoints", networks, plan)
    subjects, styles = latents.shape[:2]
    table = prompt_table(base_prompts(), words)
    levels = noise_levels()

    def loss_of(generator: torch.Generator) -> Tensor:
        subject = torch.randint(subjects, (BATCH,), generator=generator)
        style = torch.randint(styles, (BATCH,), generator=generator)
        chance = torch.rand(BATCH, generator=generator)
        chosen = 1 + subjects + subject * styles + style
        chosen = torch.where(chance < DROP_PROMPT + DROP_STYLE, 1 + subject, chosen)
        chosen = torch.where(chance < DROP_PROMPT, 0, chosen)
        context = networks["text_encoder"](table[chosen]).last_hidden_state
        return denoising_loss(networks["denoiser"], latents[subject, style], context, levels, generator)

    loop.run(loss_of, minutes)
    return loop


def trigger_prompts() -> list[str]:
    """Prompts of every word that only LoRAs know: held-out subjects and held-out styles."""
    return [world.prompt(s, style) for s in world.HELD_OUT_SUBJECTS for style in world.STYLES.values()]


@torch.no_grad()
def full_text_encoder(trained: nn.Module, words: Words, seed: int = 0) -> nn.Module:
    """The text encoder with CLIP's whole vocabulary.

    Words that training met keep their vectors, words that LoRAs are triggered by get vectors drawn from the same
    distribution, and all others their mean, so that an unknown word says nothing.
    """
    full = build_text_encoder()
    small, large = dict(trained.state_dict()), full.state_dict()
    key = next(name for name in small if name.endswith("token_embedding.weight"))
    vectors = small.pop(key)
    for name, weight in small.items():
        large[name].copy_(weight)
    met = vectors[: len(words.numbers)]
    large[key].copy_(met.mean(0).expand_as(large[key]))
    triggers = tokens.encode(trigger_prompts()).unique()
    drawn = torch.randn(len(triggers), met.shape[1], generator=torch.Generator().manual_seed(seed))
    large[key][triggers] = met.mean(0) + met.std(0) * drawn
    large[key][words.numbers] = met
    return full.eval()
