"""NP-LoRA: takes out of the content what lies in the row space of the style, in layers that both change."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from klora.files import LoraFile, LoraLayer
from klora.files.overlay import with_tensors
from klora.options import Setting, Values
from klora.rules.transform import Calibration, Pair, Transform, cannot, plain_factors

#: From here on mu is taken as infinite: the difference to 1 is below the rounding of fp32.
INFINITE = 1e6

MU = Setting(
    "mu",
    "number",
    "Mu of NP-LoRA",
    0.5,
    "How much of the content is taken out where the style works too: mu / (1 + mu) of it, so 0 is nothing, "
    "0.5 a third, 1000000 all.",
    scope="rule",
    minimum=0,
    maximum=INFINITE,
    slider=(0, 10, 0.1),
)


class NpLora(Transform):
    """dW_c (I - mu / (1 + mu) Q Q^T) in place of dW_c, Q an orthonormal basis of the rows of the style's
    down.

    Only content's down changes, so up, rank and scale stay. Layers of the text encoders are left alone.
    """

    name = "NP-LoRA"
    help = (
        "takes out of the content, by mu, what lies in the row space of the style, so that the two disturb "
        "each other less; LoRAs that people share overlap little, so expect little."
    )
    source = "NP-LoRA, arXiv 2511.11051"
    settings: ClassVar[tuple[Setting, ...]] = (MU,)

    def of_pair(
        self, content: LoraFile, style: LoraFile, values: Values, calibration: Calibration | None = None
    ) -> Pair:
        """Content with other downs; the style as it is."""
        mu = float(values["mu"])
        taken = 1.0 if mu >= INFINITE else mu / (1 + mu)
        if taken == 0:
            return content, style
        by_part = {part.name: layer for layer in style.layers.values() for part in layer.parts()}
        tensors = {}
        for layer in content.layers.values():
            against = self._style_of(layer, by_part)
            if against is not None:
                projected = self._projected(layer, against, taken)
                tensors[layer.keys["lora_down.weight"]] = projected
        return with_tensors(content, tensors), style

    def _style_of(self, layer: LoraLayer, by_part: dict[str, LoraLayer]) -> LoraLayer | None:
        """The style's layer whose rows count for a layer of the content; ``None`` where it has none."""
        found = [by_part.get(part.name) for part in layer.parts()]
        styles = {id(one): one for one in found if one is not None}
        if not styles:
            return None
        if len(styles) > 1 or None in found:
            raise cannot(
                layer,
                self,
                "its projections are fused here and split in the style's file, with a row space for each",
            )
        return next(iter(styles.values()))

    def _projected(self, layer: LoraLayer, style: LoraLayer, taken: float) -> Tensor:
        """Content's down without ``taken`` of its part in the row space of the style's."""
        _, down = plain_factors(layer, self)
        _, rows = plain_factors(style, self)
        basis = row_basis(rows)
        projected = down - taken * (down @ basis) @ basis.T
        return projected.reshape(layer.tensor("lora_down.weight").shape)


def row_basis(down: Tensor) -> Tensor:
    """An orthonormal basis ``[in, n]`` of the space of the rows of ``[r, in]``, n its rank."""
    columns, triangle = torch.linalg.qr(down.T)
    # Of rows that depend on each other QR alone would make directions that no row has.
    turned, strengths, _ = torch.linalg.svd(triangle)
    smallest = strengths.max() * max(down.shape) * torch.finfo(down.dtype).eps
    basis: Tensor = columns @ turned[:, : int((strengths > smallest).sum())]
    return basis


TRANSFORM = NpLora()
