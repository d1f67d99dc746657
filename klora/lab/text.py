"""Training of the text encoder: before the denoiser, as CLIP's was before Stable Diffusion 1.

Its mean output over all 77 places learns to tell, by one linear layer, what the picture looks like (the
clean latent) and which subject and style it shows. What the denoiser reads is so spread over the padding
too, and near words have near vectors.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from klora.lab import tokens, world
from klora.lab.loop import Loop, Plan, device
from klora.lab.model import FIRST, Shape, build_text_encoder, in_parts
from klora.lab.words import Words, base_prompts

BATCH = 64
NAMING = 0.1
"""Weight of naming subject and style, beside the latent's squared error."""


class Reader(nn.Module):
    """The text encoder with the linear layers that it is taught by, and loses afterwards."""

    def __init__(self, vocabulary: int, subjects: int, styles: int, shape: Shape = FIRST) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(shape, vocabulary)
        self.latent = nn.Linear(shape.context, math.prod(shape.latent))
        self.subject = nn.Linear(shape.context, subjects)
        self.style = nn.Linear(shape.context, styles)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latent [b, latent], subject and style scores for prompts [b, 77] in rows of the vocabulary."""
        pooled = self.text_encoder(rows).last_hidden_state.mean(1)
        return self.latent(pooled), self.subject(pooled), self.style(pooled)


def train(
    cache: Path,
    latents: Tensor,
    plan: Plan,
    minutes: float,
    prompts: list[str] | None = None,
    shape: Shape = FIRST,
) -> Loop:
    """Train or go on training the text encoder on latents [subjects, styles, *shape.latent].

    `prompts` are ordered as `base_prompts`, which they are where none are given.
    """
    torch.manual_seed(plan.seed)
    prompts = prompts or base_prompts()
    words = Words.of(prompts)
    subjects, styles = latents.shape[:2]
    reader = Reader(len(words.numbers), subjects, styles, shape)
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
def contexts(text_encoder: nn.Module, prompts: list[str], words: Words | None = None) -> Tensor:
    """What the denoiser reads for each prompt, [n, 77, 48]; `words` for an encoder still in training."""
    encoded = tokens.encode(prompts)
    rows = words.rows(encoded) if words else encoded
    return torch.cat([text_encoder(part).last_hidden_state for part in in_parts(rows)])


@torch.no_grad()
def full_vocabulary(
    trained: nn.Module,
    words: Words,
    seed: int = 0,
    triggers: list[str] | None = None,
    shape: Shape = FIRST,
) -> nn.Module:
    """The text encoder with CLIP's whole vocabulary.

    Words that training met keep their vectors, words that LoRAs are triggered by get vectors drawn from the
    same distribution, and all others their mean, so that an unknown word says little. `triggers` are prompts
    with those words, `trigger_prompts` where none are given.
    """
    full = build_text_encoder(shape)
    small, large = dict(trained.state_dict()), full.state_dict()
    key = next(name for name in small if name.endswith("token_embedding.weight"))
    vectors = small.pop(key)
    for name, weight in small.items():
        large[name].copy_(weight)
    large[key].copy_(vectors.mean(0).expand_as(large[key]))
    called = torch.unique(tokens.encode(triggers or trigger_prompts()))
    drawn = torch.randn(len(called), vectors.shape[1], generator=torch.Generator().manual_seed(seed))
    large[key][called] = vectors.mean(0) + vectors.std(0) * drawn
    large[key][words.numbers] = vectors
    return full.eval()


def trigger_prompts() -> list[str]:
    """Prompts of every word that only LoRAs know: held-out subjects and held-out styles."""
    return [world.prompt(s, style) for s in world.HELD_OUT_SUBJECTS for style in world.STYLES.values()]
