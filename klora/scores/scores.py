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
from klora.scores.delta import DeltaRows, Scratch, WholeDelta, row_blocks
from klora.scores.energy_rank import ENERGY_SHARE, energy_rank, energy_rank_of_rows
from klora.scores.measures import MEASURES, TOTAL, measure_by_rows, measure_on_device

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class LayerScore:
    """One layer: K (0 where no measure needs one) and, by measure, the numbers of content and style."""

    layer: str
    top_k: int
    measured: Mapping[str, tuple[float, float]]


def score_layer(
    layer: str,
    content: Tensor | DeltaRows,
    style: Tensor | DeltaRows,
    top_k: TopK,
    measures: Sequence[str],
    *,
    content_rank: int | None,
    style_rank: int | None,
    content_file: str = "content",
    style_file: str = "style",
    scratch: Scratch | None = None,
) -> LayerScore:
    """Measure one layer's deltas, ``[out, in]`` or ``[out, in, h, w]``, scaled as they are applied.

    Each is whole, or formed some rows at a time. A rank of ``None`` (a type without rank) is replaced by the
    energy rank, if K needs one. ``scratch`` may be kept from layer to layer. Raises `LoraFileError` naming
    file and layer if a delta holds NaN or Inf.
    """
    scratch = scratch or Scratch()
    k = 0
    if any(MEASURES[name].needs_k for name in measures):
        ranks = (1, 1)
        if top_k.form == "rank":
            ranks = (
                content_rank or _energy_rank(content, scratch),
                style_rank or _energy_rank(style, scratch),
            )
        k = top_k.of(*ranks, elements=math.prod(content.shape))
    names = list(dict.fromkeys((TOTAL, *measures)))  # the total also tells whether all is finite
    sides = [_measured(delta, names, k, scratch) for delta in (content, style)]
    for side, file in zip(sides, (content_file, style_file), strict=True):
        if not math.isfinite(side[TOTAL]):
            raise _not_finite(layer, file)
    return LayerScore(layer, k, {name: (sides[0][name], sides[1][name]) for name in measures})


def _measured(
    delta: Tensor | DeltaRows, names: Sequence[str], k: int, scratch: Scratch
) -> Mapping[str, float]:
    if not isinstance(delta, Tensor):
        return measure_by_rows(delta, names, k, scratch)
    # Apple's GPUs have no float64, and sums in float32 would depend on their order.
    if delta.device.type in ("cpu", "mps"):
        return measure_by_rows(WholeDelta(delta.cpu()), names, k, scratch)
    return measure_on_device(delta, names, k)


def _energy_rank(delta: Tensor | DeltaRows, scratch: Scratch) -> int:
    if isinstance(delta, Tensor):
        return energy_rank(delta.cpu() if delta.device.type == "mps" else delta)
    known = delta.energy_rank(ENERGY_SHARE)
    if known is not None:
        return known
    width = math.prod(delta.shape[1:])
    if delta.shape[0] < width:
        return energy_rank(delta.whole())
    return energy_rank_of_rows(lambda: row_blocks(delta, scratch), width)


def _not_finite(layer: str, file: str) -> LoraFileError:
    return LoraFileError(
        f"{file}: layer {layer} holds NaN or infinite values, which would blacken the picture; "
        "use another version of this file or train it again.",
        file=file,
        layer=layer,
        defect="NaN or Inf",
    )


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
