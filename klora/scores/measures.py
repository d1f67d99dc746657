"""What can be measured of a LoRA's dW in one layer: each measure is a function and an entry here.

A rule names the measures that it decides by; nothing else is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from klora.scores.top_k import top_k_sum, total

TOP_K_SUM, TOTAL, ENERGY = "top-k sum", "total", "energy"


@dataclass(frozen=True)
class Measure:
    """One measure. ``of`` maps ``|dW|`` (any shape, floating) and K to a number; ``needs_k`` if K matters."""

    name: str
    of: Callable[[Tensor, int], float]
    needs_k: bool = False


def energy(magnitudes: Tensor) -> float:
    """E = squared Frobenius norm of dW, in float64 (EST-LoRA, arXiv 2508.02165)."""
    norm = torch.linalg.vector_norm(magnitudes.flatten(), dtype=torch.float64)
    return float(norm * norm)


MEASURES: Mapping[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure(TOP_K_SUM, top_k_sum, needs_k=True),
        Measure(TOTAL, lambda magnitudes, _k: total(magnitudes)),
        Measure(ENERGY, lambda magnitudes, _k: energy(magnitudes)),
    )
}
