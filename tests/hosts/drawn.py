"""How the tests' random checkpoints are drawn. Imported by scripts that a host's own Python runs."""

from __future__ import annotations

import math
import zlib

import torch


def drawn(name: str, shape: torch.Tensor, seed: int) -> torch.Tensor:
    """Unit gain for matrices, near one for norms, small for biases and embeddings; seeded by name."""
    if name.endswith("position_ids"):
        return torch.arange(77).unsqueeze(0)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
    values = torch.randn(shape.shape, generator=generator)
    if "embedding.weight" in name or name.endswith(".bias"):
        values *= 0.02
    elif values.ndim >= 2:
        values /= math.sqrt(values[0].numel())
    else:
        values = 1 + 0.1 * values
    return values.half().contiguous()
