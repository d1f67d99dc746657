"""Training of the text encoder: before the denoiser, as CLIP's was before Stable Diffusion 1.

Its mean output over all 77 places learns to tell, by one linear layer, what the picture looks like (the
clean latent) and which subject and style it shows. What the denoiser reads is so spread over the padding
too, and near words have near vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from klora.lab import tokens
from klora.lab.model import CONTEXT, LATENT, build_text_encoder, in_parts
from klora.lab.training.loop import Loop, Plan, device
from klora.lab.world.prompts import base_prompts

BATCH = 64
NAMING = 0.1
"""Weight of naming subject and style, beside the latent's squared error."""


@dataclass
class Words:
    """The rows of CLIP's vocabulary that training meets, so that it carries few of the 49,408 vectors."""

    numbers: Tensor
    """Token numbers in ascending order, [rows]."""

    @classmethod
    def of(cls, prompts: list[str]) -> Words:
        """The words of some prompts, start and end among them."""
        return cls(torch.unique(tokens.encode(prompts)))

    def rows(self, encoded: Tensor) -> Tensor:
        """Token numbers to rows, same shape."""
        return torch.searchsorted(self.numbers, encoded)


class Reader(nn.Module):
    """The text encoder with the linear layers that it is taught by, and loses afterwards."""

    def __init__(self, vocabulary: int, subjects: int, styles: int) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(vocabulary)
        self.latent = nn.Linear(CONTEXT, math.prod(LATENT))
        self.subject = nn.Linear(CONTEXT, subjects)
        self.style = nn.Linear(CONTEXT, styles)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latent [b, latent], subject and style scores for prompts [b, 77] in rows of the vocabulary."""
        pooled = self.text_encoder(rows).last_hidden_state.mean(1)
        return self.latent(pooled), self.subject(pooled), self.style(pooled)


def train(cache: Path, latents: Tensor, plan: Plan, minutes: float) -> Loop:
    """Train or go on training the text encoder on latents [kinds, styles, *LATENT], by `base_prompts`."""
    torch.manual_seed(plan.seed)
    prompts = base_prompts()
    words = Words.of(prompts)
    subjects, styles = latents.shape[:2]
    reader = Reader(len(words.numbers), subjects, styles)
    loop = Loop("text", cache / "checkpoints", reader, plan)
    table = words.rows(tokens.encode(prompts))[1 + subjects :]
    flat = latents.reshape(subjects * styles, -1).to(device())
    table = table.to(device())

    def loss_of(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(table), (BATCH,), generator=generator).to(device())
        latent, subject, style = loop.model(table[chosen])
        naming = functional.cross_entropy(subject, chosen // styles)
        naming = naming + functional.cross_entropy(style, chosen % styles)
        return functional.mse_loss(latent, flat[chosen]) + NAMING * naming

    loop.run(loss_of, minutes)
    return loop


@torch.no_grad()
def contexts(text_encoder: nn.Module, prompts: list[str], words: Words) -> Tensor:
    """What the denoiser reads for each prompt, [n, 77, CONTEXT]; `words` are those of its training."""
    rows = words.rows(tokens.encode(prompts))
    return torch.cat([text_encoder(part).last_hidden_state for part in in_parts(rows)])


@torch.no_grad()
def read(full: nn.Module, prompts: list[str]) -> Tensor:
    """The same by an encoder with the whole vocabulary."""
    return torch.cat([full(part).last_hidden_state for part in in_parts(tokens.encode(prompts))])


@torch.no_grad()
def full_vocabulary(trained: nn.Module, words: Words, triggers: list[str], seed: int = 0) -> nn.Module:
    """The text encoder with CLIP's whole vocabulary.

    Words that training met keep their vectors, words that LoRAs are triggered by get vectors drawn from the
    same distribution, and all others their mean, so that an unknown word says little. `triggers` are prompts
    with those words.
    """
    full = build_text_encoder()
    small, large = dict(trained.state_dict()), full.state_dict()
    key = next(name for name in small if name.endswith("token_embedding.weight"))
    vectors = small.pop(key)
    for name, weight in small.items():
        large[name].copy_(weight)
    large[key].copy_(vectors.mean(0).expand_as(large[key]))
    called = torch.unique(tokens.encode(triggers))
    drawn = torch.randn(len(called), vectors.shape[1], generator=torch.Generator().manual_seed(seed))
    large[key][called] = vectors.mean(0) + vectors.std(0) * drawn
    large[key][words.numbers] = vectors
    return full.eval()
