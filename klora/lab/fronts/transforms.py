"""Rules that change the pair before sampling, as low-rank branches; any schedule may follow.

NP-LoRA takes from content what lies in the style's row space (arXiv 2511.11051). SSR mixes the ranks so that
each LoRA answers its own inputs as it does alone (arXiv 2606.10617).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from klora.lab.fronts.branches import Branch, Pair
from klora.lab.fronts.calibration import inputs_alone
from klora.lab.model import Model

REGULARISATION = 1e-3
"""SSR's lambda, as a share of the mean of the diagonal of G."""


def np_lora(pair: Pair, mu: float) -> Pair:
    """dW_s + dW_c (I - mu / (1 + mu) Q Q^T), where A_s^T = Q R; ``mu`` may be infinite."""
    removed = 1.0 if math.isinf(mu) else mu / (1 + mu)
    return Pair(pair.names, {name: _projected(one, removed) for name, one in pair.branches.items()})


def _projected(branch: Branch, removed: float) -> Branch:
    first, second = branch.ranks
    if not first or not second:
        return branch
    flat = branch.down.flatten(1)
    basis, _ = torch.linalg.qr(flat[first:].T)
    content = flat[:first] - removed * (flat[:first] @ basis) @ basis.T
    return replace(branch, down=torch.cat([content, flat[first:]]).reshape(branch.down.shape))


def ssr(model: Model, pair: Pair, prompts: tuple[str, str]) -> Pair:
    """Subspace regression: up becomes up R, with R = Q (G + lambda I)^-1 from one step with each LoRA alone.

    ``prompts`` are what calls content alone and style alone.
    """
    seen = [inputs_alone(model, pair, prompt, side) for side, prompt in enumerate(prompts)]
    made = {}
    for name, branch in pair.branches.items():
        whole = seen[0][name][0] + seen[1][name][0]
        asked = torch.cat([seen[0][name][1], seen[1][name][1]])
        made[name] = replace(branch, up=branch.up @ mixing(whole, asked))
    return Pair(pair.names, made)


def mixing(whole: Tensor, asked: Tensor) -> Tensor:
    """R = Q (G + lambda I)^-1 for G ``whole`` and Q ``asked``, both [ranks, ranks]."""
    ridge = REGULARISATION * whole.diagonal().mean() * torch.eye(len(whole))
    return torch.linalg.solve(whole + ridge, asked.T).T
