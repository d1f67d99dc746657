"""The style's bonus as a function of progress."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def bonus(schedule: str, alpha: float, beta: float, progress: Numbers | float) -> Numbers:
    """S(t) = alpha * t + beta, or S*(t) = (alpha * t + beta) mod alpha (paper, equations 5 and 7)."""
    linear = alpha * np.asarray(progress, dtype=np.float64) + beta
    return np.mod(linear, alpha) if schedule == "S*" else linear
