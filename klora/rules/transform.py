"""What a transform is: it replaces the pair, before a rule decides, by another pair of the same size.

To add a transform, write one file here with a subclass of `Transform` and its ``TRANSFORM``, and add one line
to `klora.rules.registry`. Settings, infotext, UI, axes, command line and hosts follow from it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from klora.errors import LoraFileError
from klora.files import LoraFile, LoraLayer, split_layers
from klora.options import Values
from klora.rules.part import Part

Pair = tuple[LoraFile, LoraFile]


@dataclass(frozen=True, eq=False)
class Calibration:
    """What was seen of a pair's layers in one step with content alone and one with style alone.

    ``weights`` are those by which the two LoRAs will be applied. ``moments`` leads from a layer's name to
    Z_k Z_k^T of the two steps, each ``[r_c + r_s, r_c + r_s]`` in fp64: Z_k is what the downs of both,
    content's first, make of the layer's input X_k (a column for each token or pixel).
    """

    weights: tuple[float, float]
    moments: Mapping[str, tuple[Tensor, Tensor]]


class Transform(Part):
    """One transform.

    ``changes_pairs`` is false for the one that leaves all as it is. ``needs_calibration``: it goes by what
    the layers see while a picture is made.
    """

    changes_pairs: ClassVar[bool] = True
    needs_calibration: ClassVar[bool] = False

    @abstractmethod
    def of_pair(
        self, content: LoraFile, style: LoraFile, values: Values, calibration: Calibration | None = None
    ) -> Pair:
        """The pair that stands for content and style from now on: same layers, ranks and scales.

        Raises `LoraFileError` naming file and layer where it cannot be done exactly, and `PairError` where
        a calibration is needed and none is there.
        """


def plain_factors(layer: LoraLayer, transform: Transform) -> tuple[Tensor, Tensor]:
    """(s * up ``[out, r]``, down ``[r, in * kernel]``) in fp64; raises `LoraFileError` for other types."""
    factors = layer.factors()
    if factors is None:
        raise cannot(layer, transform, f"a {layer.kind} layer is no product of two matrices")
    up, down = (one.flatten(1).double() for one in factors)
    for which, one in (("lora_up", up), ("lora_down", down)):
        if not bool(one.isfinite().all()):
            raise layer.error(
                f"{which} holds NaN or infinite values", "use another version of this file or train it again"
            )
    return up, down


def stacked_downs(content: LoraFile, style: LoraFile, transform: Transform) -> dict[str, Tensor]:
    """A = [A_c; A_s], ``[r_c + r_s, in * kernel]`` in fp64, of each layer that both change.

    Raises as `plain_factors` does.
    """
    first, second = split_layers(content), split_layers(style)
    return {
        name: torch.cat([plain_factors(layer, transform)[1] for layer in (first[name], second[name])])
        for name in first.keys() & second.keys()
    }


def cannot(layer: LoraLayer, transform: Transform, reason: str) -> LoraFileError:
    """The error for a layer that a transform cannot rewrite exactly."""
    return layer.error(
        f"{transform.name} cannot rewrite it: {reason}",
        "set Rewrite the pair to none, or pick another LoRA",
    )
