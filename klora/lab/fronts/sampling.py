"""Pictures of one pair by many methods in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klora.lab import tokens
from klora.lab.fronts.branches import Pair, attached
from klora.lab.fronts.dealing import Dealt
from klora.lab.model import LATENT_SCALE, NOISE, Model, in_parts

BATCH = 24
"""Pictures that are made at once; each is two rows of the denoiser's batch."""


@dataclass(frozen=True)
class Wanted:
    """One picture: its seed, what it is dealt, and the guidance scale."""

    seed: int
    dealt: Dealt
    guidance: float


def scheduler() -> Any:
    """DPM++ 2M as the lab's pipeline has it."""
    from diffusers import DPMSolverMultistepScheduler

    build: Any = DPMSolverMultistepScheduler
    return build(**NOISE, algorithm_type="dpmsolver++", steps_offset=1)


@torch.no_grad()
def pictures(model: Model, pair: Pair, prompt: str, wanted: Sequence[Wanted], steps: int) -> Tensor:
    """The pictures [n, 3, h, w] in bytes of a pair; every `Dealt` is in the order of ``pair.names``."""
    contexts = model.text_encoder(tokens.encode(["", prompt])).last_hidden_state
    decode: Any = model.autoencoder.decode
    parts = []
    with attached(model.denoiser, pair):
        for start in range(0, len(wanted), BATCH):
            latents = _latents(model, pair, contexts, wanted[start : start + BATCH], steps)
            made = [decode(part / LATENT_SCALE).sample for part in in_parts(latents, 16)]
            parts.append(((torch.cat(made) / 2 + 0.5).clamp(0, 1) * 255).round().byte())
    return torch.cat(parts)


def _latents(model: Model, pair: Pair, contexts: Tensor, wanted: Sequence[Wanted], steps: int) -> Tensor:
    """The latents [n, 4, h, w] of a batch; rows of the unconditional pass come first."""
    count = len(wanted)
    edge: int = model.denoiser.config.sample_size  # type: ignore[union-attr, assignment]
    noise = [
        torch.randn(1, 4, edge, edge, generator=torch.Generator().manual_seed(one.seed)) for one in wanted
    ]
    shares = _shares(wanted)
    context = contexts.repeat_interleave(count, dim=0)
    guidance = torch.tensor([one.guidance for one in wanted])[:, None, None, None]
    solver = scheduler()
    solver.set_timesteps(steps)
    latents: Tensor = torch.cat(noise) * solver.init_noise_sigma
    for step, when in enumerate(solver.timesteps):
        pair.shares = shares[step]
        predicted = model.denoiser(torch.cat([latents, latents]), when, context).sample
        without, guided = predicted.chunk(2)
        latents = solver.step(without + guidance * (guided - without), when, latents).prev_sample
    pair.shares = None
    return latents


def _shares(wanted: Sequence[Wanted]) -> Tensor:
    """[steps, rows, layers, 2] of a batch, unconditional rows first."""
    columns = [one.dealt.unconditional for one in wanted] + [one.dealt.conditional for one in wanted]
    return torch.from_numpy(np.stack(columns, axis=1)).float()
