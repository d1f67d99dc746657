"""gamma: puts two LoRAs of different strength on one footing (paper, equation 6)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def gamma(choice: str, content_totals: Numbers, style_totals: Numbers) -> float:
    """gamma from the per-layer sums of ``|dW|``, each ``[layers]``.

    ``paper``: sum(content) / sum(style). ``published``: mean over layers of content / style, after
    dropping the ratios of three times the mean or more. ``off``: 1. A style LoRA that is zero in
    every layer gives 1, so that the comparison stays defined (content then wins everywhere).
    """
    if choice == "off" or not style_totals.sum() > 0:
        return 1.0
    if choice == "paper":
        return float(content_totals.sum() / style_totals.sum())
    return mean_ratio(content_totals, style_totals, outlier=3.0)


def mean_ratio(content_totals: Numbers, style_totals: Numbers, *, outlier: float | None = None) -> float:
    """The mean over layers of content / style, each ``[layers]``, where there is any style.

    Ratios of ``outlier`` times the mean or more are dropped first. 1 if no layer is left.
    """
    present = style_totals > 0
    if not present.any():
        return 1.0
    ratios = content_totals[present] / style_totals[present]
    kept = ratios if outlier is None else ratios[ratios < outlier * ratios.mean()]
    return float(kept.mean()) if kept.size else 1.0
