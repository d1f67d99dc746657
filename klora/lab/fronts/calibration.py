"""One pass through the model with the pair on it, to measure what each LoRA does to the inputs that it meets.

Weights alone do not tell that: a large delta may point where no input goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from klora.lab import tokens
from klora.lab.fronts.branches import Branch, Pair, attached
from klora.lab.fronts.sampling import scheduler
from klora.lab.model import Model
from klora.rules import Calibration

SEED = 4_000_000
"""Seed of the calibration's noise, which no picture of a study has."""


@dataclass(frozen=True)
class Effects:
    """Norm of what content and style add to each layer's output at each step, [steps, layers, 2]."""

    layers: tuple[str, ...]
    norms: NDArray[np.float64]


def low(module: nn.Module, seen: Tensor, branch: Branch) -> Tensor:
    """A layer's inputs in the branch's ranks, [ranks, positions]: all rows and places side by side."""
    if isinstance(module, nn.Conv2d):
        found = functional.conv2d(seen, branch.down, None, module.stride, module.padding, module.dilation)
        return found.transpose(0, 1).flatten(1)
    return (seen.reshape(-1, seen.shape[-1]) @ branch.down.flatten(1).T).T


@contextmanager
def watched(denoiser: nn.Module, pair: Pair, tell: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While it lasts, ``tell`` hears of every call of a layer of the pair: name and `low` of its input."""
    known = dict(denoiser.named_modules())

    def hook(name: str) -> Any:
        def hear(module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            tell(name, low(module, inputs[0], pair.branches[name]))

        return hear

    handles = [known[name].register_forward_hook(hook(name)) for name in pair.names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def branch_norms(branch: Branch, seen: Tensor) -> tuple[float, float]:
    """Frobenius norms of what content and style add, from `low` inputs [ranks, positions]."""
    first = branch.ranks[0]
    content, style = branch.up[:, :first] @ seen[:first], branch.up[:, first:] @ seen[first:]
    return float(content.norm()), float(style.norm())


@torch.no_grad()
def effects(model: Model, pair: Pair, prompt: str, steps: int) -> Effects:
    """The effects along one sampling without guidance in which both LoRAs are added."""
    context = model.text_encoder(tokens.encode([prompt])).last_hidden_state
    norms = np.zeros((steps, len(pair.names), 2))
    places = {name: place for place, name in enumerate(pair.names)}
    solver = scheduler()
    solver.set_timesteps(steps)
    edge: int = model.denoiser.config.sample_size  # type: ignore[union-attr, assignment]
    noise = torch.randn(1, 4, edge, edge, generator=torch.Generator().manual_seed(SEED))
    latents = noise * solver.init_noise_sigma
    now = 0

    def tell(name: str, seen: Tensor) -> None:
        norms[now, places[name]] = branch_norms(pair.branches[name], seen)

    with attached(model.denoiser, pair), watched(model.denoiser, pair, tell):
        pair.shares = torch.ones(1, len(pair.names), 2)
        for now, when in enumerate(solver.timesteps):  # noqa: B007 - `tell` reads it
            predicted = model.denoiser(latents, when, context).sample
            latents = solver.step(predicted, when, latents).prev_sample
        pair.shares = None
    return Effects(pair.names, norms)


def calibration(
    model: Model, pair: Pair, prompts: Sequence[str], weights: tuple[float, float]
) -> Calibration:
    """What a transform goes by: one step with each LoRA alone, at its weight and with what calls it."""
    alone = [moments_alone(model, pair, prompt, side, weights[side]) for side, prompt in enumerate(prompts)]
    return Calibration(weights, {name: (alone[0][name], alone[1][name]) for name in pair.names})


@torch.no_grad()
def moments_alone(
    model: Model, pair: Pair, prompt: str, side: int, weight: float = 1.0, when: int = 500
) -> dict[str, Tensor]:
    """Z Z^T of every layer's `low` inputs Z, [ranks, ranks] in fp64, in one step with one LoRA alone
    (0 content, 1 style).
    """
    context = model.text_encoder(tokens.encode([prompt])).last_hidden_state
    edge: int = model.denoiser.config.sample_size  # type: ignore[union-attr, assignment]
    chance = torch.Generator().manual_seed(SEED)
    found: dict[str, Tensor] = {}

    def tell(name: str, seen: Tensor) -> None:
        wide = seen.double()
        found[name] = wide @ wide.T

    alone = torch.zeros(1, len(pair.names), 2)
    alone[..., side] = weight
    with attached(model.denoiser, pair), watched(model.denoiser, pair, tell):
        pair.shares = alone
        model.denoiser(torch.randn(1, 4, edge, edge, generator=chance), torch.tensor(when), context)
        pair.shares = None
    return found
