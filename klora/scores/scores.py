"""What the two LoRAs of a pair weigh in each contested layer. Independent of time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from klora.errors import LoraFileError
from klora.options import TopK
from klora.scores.measures import MEASURES, TOTAL
from klora.scores.top_k import energy_rank, total

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class LayerScore:
    """One layer: K (0 where no measure needs one) and, by measure, the numbers of content and style."""

    layer: str
    top_k: int
    measured: Mapping[str, tuple[float, float]]


def score_layer(
    layer: str,
    content: Tensor,
    style: Tensor,
    top_k: TopK,
    measures: Sequence[str],
    *,
    content_rank: int | None,
    style_rank: int | None,
    content_file: str = "content",
    style_file: str = "style",
) -> LayerScore:
    """Measure one layer's deltas, ``[out, in]`` or ``[out, in, h, w]``, scaled as they are applied.

    A rank of ``None`` (a type without rank) is replaced by the energy rank, if K needs one. Raises
    `LoraFileError` naming file and layer if a delta holds NaN or Inf.
    """
    content, style = _where_float64_is(content), _where_float64_is(style)
    magnitudes = [content.detach().abs(), style.detach().abs()]
    totals = (total(magnitudes[0]), total(magnitudes[1]))
    for amount, file in zip(totals, (content_file, style_file), strict=True):
        if not math.isfinite(amount):
            raise LoraFileError(
                f"{file}: layer {layer} holds NaN or infinite values, which would blacken the picture; "
                "use another version of this file or train it again.",
                file=file,
                layer=layer,
                defect="NaN or Inf",
            )
    k = 0
    if any(MEASURES[name].needs_k for name in measures):
        ranks = (1, 1)
        if top_k.kind == "rank":
            ranks = (content_rank or energy_rank(content), style_rank or energy_rank(style))
        k = top_k.of(*ranks, elements=content.numel())
    measured = {name: totals if name == TOTAL else _both(name, magnitudes, k) for name in measures}
    return LayerScore(layer, k, measured)


def _both(name: str, magnitudes: Sequence[Tensor], k: int) -> tuple[float, float]:
    content, style = (MEASURES[name].of(weights, k) for weights in magnitudes)
    return content, style


def _where_float64_is(delta: Tensor) -> Tensor:
    """Apple's GPUs have no float64, and sums in float32 would depend on their order."""
    return delta.cpu() if delta.device.type == "mps" else delta


@dataclass(frozen=True)
class Scores:
    """All contested layers, in the order of a forward pass.

    ``top_k`` is K of each layer, ``measured`` leads from a measure's name to ``[layers, 2]``: content, style.
    """

    layers: tuple[str, ...]
    top_k: tuple[int, ...]
    measured: Mapping[str, Numbers]

    @staticmethod
    def of(scored: Iterable[LayerScore], measures: Sequence[str]) -> Scores:
        """The scores of these layers by these measures."""
        listed = list(scored)
        return Scores(
            tuple(layer.layer for layer in listed),
            tuple(layer.top_k for layer in listed),
            {
                name: np.array([layer.measured[name] for layer in listed], dtype=np.float64).reshape(-1, 2)
                for name in measures
            },
        )

    def content(self, measure: str) -> Numbers:
        """The content's numbers by a measure, ``[layers]``."""
        return self.measured[measure][:, 0]

    def style(self, measure: str) -> Numbers:
        """The style's numbers by a measure, ``[layers]``."""
        return self.measured[measure][:, 1]
