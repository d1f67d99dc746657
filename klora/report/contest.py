"""How strongly two LoRAs contest the same layers: the distribution of the logarithm of their ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

QUANTILES = (10, 25, 50, 75, 90)

#: Where the two differ by less than this factor, neither is ahead.
EVEN_FACTOR = 1.25


@dataclass(frozen=True)
class ContestSpread:
    """``log2_ratios`` of content to style, one for each contested layer, ``[layers]``, after gamma.

    0 is a tie, 1 is twice as much content. Infinite where one of the two is zero. ``measure`` names what was
    compared.
    """

    measure: str
    log2_ratios: Numbers

    @staticmethod
    def of(measure: str, content: Numbers, style: Numbers, gamma: float) -> ContestSpread:
        """From the numbers of both, each ``[layers]``; layers in which both are zero are left out."""
        present = (content > 0) | (style > 0)
        with np.errstate(divide="ignore"):
            ratios = np.log2(content[present]) - np.log2(gamma * style[present])
        return ContestSpread(measure, ratios)

    @property
    def quantiles(self) -> dict[str, float | None]:
        """The 10th to 90th percentile; ``None`` where infinite or unknown."""
        if not self.log2_ratios.size:
            return {f"{one}%": None for one in QUANTILES}
        # Of the numbers as they are, because between an infinite and a finite one nothing can be drawn.
        found = np.percentile(self.log2_ratios, QUANTILES, method="nearest")
        named = zip(QUANTILES, found, strict=True)
        return {f"{one}%": round(float(value), 4) if np.isfinite(value) else None for one, value in named}

    def parts(self) -> dict[str, float]:
        """The shares of the layers in which content is ahead, neither is, and style is."""
        if not self.log2_ratios.size:
            return {"content ahead": 0.0, "even": 0.0, "style ahead": 0.0}
        edge = np.log2(EVEN_FACTOR)
        ahead, behind = float((self.log2_ratios > edge).mean()), float((self.log2_ratios < -edge).mean())
        return {"content ahead": ahead, "even": 1 - ahead - behind, "style ahead": behind}

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "measure": self.measure,
            "log2_ratio": self.quantiles,
            "layers": {name: round(part, 4) for name, part in self.parts().items()},
        }
