"""Progress t of the sampling, 0 at the first step and 1 at the last."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def step_progress(step: float, steps: int) -> float:
    """t = i / (N - 1); 0 if there is only one step. A step past the end reads 1."""
    return min(max(step / (steps - 1), 0.0), 1.0) if steps > 1 else 0.0


def noise_progress(timestep: float, train_timesteps: int = 1000) -> float:
    """t from the model's own timestep, from ``train_timesteps - 1`` (pure noise) to 0 (clean)."""
    return min(max(1.0 - timestep / (train_timesteps - 1), 0.0), 1.0)


def published_progress(step: int, steps: int, layers: int) -> Numbers:
    """t of each layer, ``[layers]``: the published code ticks once per layer call, from 1.

    t = ((i * L + j + 1) mod (N * L)) / (N * L), so the very last call of a sampling reads 0.
    """
    calls = step * layers + np.arange(1, layers + 1)
    return np.mod(calls, steps * layers) / (steps * layers)
