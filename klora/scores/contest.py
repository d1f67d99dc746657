"""The contest of one layer, and the scores of all contested layers of a pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from klora.errors import LoraFileError
from klora.scores.gamma import balance
from klora.scores.top_k import energy_rank, top_k_sum, total
from klora.settings import TopK

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Contest:
    """What one contested layer weighs: S_c and S_s before gamma and scale, the totals, and K."""

    layer: str
    top_k: int
    content_score: float
    style_score: float
    content_total: float
    style_total: float


def score_layer(
    layer: str,
    content: Tensor,
    style: Tensor,
    top_k: TopK,
    *,
    content_rank: int | None,
    style_rank: int | None,
    content_file: str = "content",
    style_file: str = "style",
) -> Contest:
    """Score one layer from both deltas, ``[out, in]`` or ``[out, in, h, w]``, scaled as they are applied.

    A rank of ``None`` (a type without rank) is replaced by the energy rank, if K needs one. Raises
    `LoraFileError` naming file and layer if a delta holds NaN or Inf.
    """
    content, style = _where_float64_is(content), _where_float64_is(style)
    magnitudes = [content.detach().abs(), style.detach().abs()]
    totals = []
    for weights, file in zip(magnitudes, (content_file, style_file), strict=True):
        amount = total(weights)
        if not np.isfinite(amount):
            raise LoraFileError(
                f"{file}: layer {layer} holds NaN or infinite values, which would blacken the picture; "
                "use another version of this file or train it again.",
                file=file,
                layer=layer,
                defect="NaN or Inf",
            )
        totals.append(amount)
    ranks = (1, 1)
    if top_k.kind == "rank":
        ranks = (content_rank or energy_rank(content), style_rank or energy_rank(style))
    k = top_k.of(*ranks, elements=content.numel())
    scores = [top_k_sum(weights, k) for weights in magnitudes]
    return Contest(layer, k, *scores, *totals)


def _where_float64_is(delta: Tensor) -> Tensor:
    """Apple's GPUs have no float64, and sums in float32 would depend on their order."""
    return delta.cpu() if delta.device.type == "mps" else delta


@dataclass(frozen=True)
class Scores:
    """The scores of all contested layers, in the order of a forward pass. Independent of time."""

    contests: tuple[Contest, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the contested layers."""
        return tuple(one.layer for one in self.contests)

    @property
    def content(self) -> Numbers:
        """S_c, ``[layers]``."""
        return np.array([one.content_score for one in self.contests], dtype=np.float64)

    @property
    def style(self) -> Numbers:
        """S_s, ``[layers]``."""
        return np.array([one.style_score for one in self.contests], dtype=np.float64)

    def only(self, layers: Sequence[str]) -> Scores:
        """The same scores restricted to ``layers``."""
        wanted = set(layers)
        return Scores(tuple(one for one in self.contests if one.layer in wanted))

    def gamma(self, kind: str) -> float:
        """gamma over these layers; ``kind`` as in the settings."""
        return balance(
            kind,
            np.array([one.content_total for one in self.contests], dtype=np.float64),
            np.array([one.style_total for one in self.contests], dtype=np.float64),
        )
