"""SSR: mixes the outputs of both LoRAs so that each, on what it was seen to be given, gives what it gave
alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from klora.errors import PairError
from klora.files import LoraFile, LoraLayer, split_layers
from klora.files.overlay import with_tensors
from klora.options import Setting, Values
from klora.rules.rule import CONTENT, STYLE
from klora.rules.transform import Calibration, Pair, Transform, cannot, plain_factors

RIDGE = Setting(
    "ridge",
    "number",
    "Lambda of SSR",
    0.001,
    "Keeps the equations that SSR solves from being undetermined. Larger: both LoRAs weaker.",
    scope="rule",
    minimum=1e-9,
    maximum=1e9,
    slider=(0.001, 1, 0.001),
)


class Ssr(Transform):
    """B R in place of B, for A = [A_c; A_s] and B = [B_c B_s], scales and weights inside B.

    R = Q (G + lambda I)^-1 with G = sum Z_k Z_k^T and Q = stack_k(A_k X_k Z_k^T), where X_k are the inputs of
    the layer in a step with LoRA k alone and Z_k = A X_k: R Z_k comes closest to A_k X_k in k's rows and 0 in
    the other's. R = I is adding. The downs stay; both ups are B R, split by columns.
    """

    name = "SSR"
    help = (
        "mixes both LoRAs so that each does what it does alone on what it sees alone; it looks at two extra "
        "steps, which today only diffusers can run (klora.fuse), not the WebUIs."
    )
    source = "SSR-Merge, arXiv 2606.10617"
    settings: ClassVar[tuple[Setting, ...]] = (RIDGE,)
    needs_calibration = True

    def of_pair(
        self, content: LoraFile, style: LoraFile, values: Values, calibration: Calibration | None = None
    ) -> Pair:
        """Both with other ups. A LoRA of weight 0 has no say: then both stay as they are."""
        if calibration is None:
            raise PairError(
                "SSR needs two extra steps of the pipeline to look at, which only diffusers can run; use "
                "klora.fuse there, or set Rewrite the pair to none or NP-LoRA."
            )
        if 0 in calibration.weights:
            return content, style
        ridge = float(values["ridge"])
        parts = split_layers(content), split_layers(style)
        mixed: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        for name in parts[CONTENT].keys() & parts[STYLE].keys():
            layers = parts[CONTENT][name], parts[STYLE][name]
            ups = self._mixed(layers, calibration, name, ridge)
            for place in (CONTENT, STYLE):
                mixed[place][name] = ups[place]
        files = (
            with_tensors(file, _whole_ups(file, of_parts))
            for file, of_parts in zip((content, style), mixed, strict=True)
        )
        content, style = files
        return content, style

    def _mixed(
        self, layers: tuple[LoraLayer, LoraLayer], calibration: Calibration, name: str, ridge: float
    ) -> tuple[Tensor, Tensor]:
        """What stands in the files for both ups of a layer, ``[out, r]`` each, without scale and weight."""
        factors = [plain_factors(layer, self)[0] for layer in layers]
        inside = [layer.scale * weight for layer, weight in zip(layers, calibration.weights, strict=True)]
        for layer, number in zip(layers, inside, strict=True):
            if number == 0:
                raise cannot(layer, self, "its alpha is 0")
        both = torch.cat(
            [up * weight for up, weight in zip(factors, calibration.weights, strict=True)], dim=1
        )
        rank = factors[CONTENT].shape[1]
        turned = both @ mixing(calibration.moments[name], rank, ridge)
        return turned[:, :rank] / inside[CONTENT], turned[:, rank:] / inside[STYLE]


def mixing(moments: tuple[Tensor, Tensor], content_rank: int, ridge: float) -> Tensor:
    """R = Q (G + lambda I)^-1, ``[r_c + r_s, r_c + r_s]``, from Z_k Z_k^T of both steps."""
    gram = moments[CONTENT] + moments[STYLE]
    # A_k X_k are k's rows of Z_k, and so A_k X_k Z_k^T are k's rows of Z_k Z_k^T.
    wanted = torch.cat([moments[CONTENT][:content_rank], moments[STYLE][content_rank:]])
    regular = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    solved: Tensor = torch.linalg.solve(regular, wanted.T).T  # regular is symmetric
    return solved


def _whole_ups(file: LoraFile, of_parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ups by key of the file: those of fused projections with the rows of their parts replaced."""
    tensors: dict[str, Tensor] = {}
    for layer in file.layers.values():
        parts = [part for part in layer.parts() if part.name in of_parts]
        if not parts:
            continue
        up = layer.tensor("lora_up.weight").double()
        for part in parts:
            _place(up, part, of_parts[part.name])
        tensors[layer.keys["lora_up.weight"]] = up
    return tensors


def _place(up: Tensor, part: LoraLayer, values: Tensor) -> None:
    """Write the rows of ``part`` where they belong in the whole up."""
    done = 0
    for first, last in part.rows or ((0, len(up)),):
        up[first:last] = values[done : done + last - first].reshape(up[first:last].shape)
        done += last - first


TRANSFORM = Ssr()
