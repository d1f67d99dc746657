"""Which form a LoRA's file allows, and whether a host's dW has it."""

from __future__ import annotations

import torch
from torch import Tensor

from klora.files import LoraLayer
from klora.files.kinds import MAGNITUDES, lokr_factor
from klora.files.layer import take_rows
from klora.weights.forms import Form, Kronecker, LowRank, Whole


def form_of(layer: LoraLayer) -> Form | None:
    """A form of a file's layer that is less work than its matrix, alpha included; ``None`` if there is none.

    LoHa, (A1 B1) * (A2 B2), is of rank r^2: row by row the Kronecker product of A1 and A2, column by column
    that of B1 and B2.
    """
    form = _form_of(layer)
    return None if form is None or form.work >= form.elements else form


def _form_of(layer: LoraLayer) -> Form | None:
    factors = layer.factors()
    if factors is not None:
        return LowRank(*factors)
    if layer.kind not in ("loha", "lokr"):
        return None
    stored, scale = layer.weights_and_scale()
    tensors = {name: one.float() for name, one in stored.items()}
    if tensors.keys() & {*MAGNITUDES, "hada_t1", "hada_t2"}:
        return None
    if layer.kind == "lokr":
        parts = (scale * lokr_factor(tensors, "1"), lokr_factor(tensors, "2"))
        return Kronecker(*parts) if layer.rows is None else None
    a1, b1, a2, b2 = (tensors[f"hada_w{half}_{one}"] for half in "12" for one in "ab")
    up = scale * torch.einsum("oi,oj->oij", a1, a2).flatten(1)
    down = torch.einsum("in,jn->ijn", b1, b2).flatten(0, 1)
    return LowRank(up if layer.rows is None else take_rows(up, layer.rows), down)


def fitted(form: Form | None, dense: Tensor, tolerance: float = 1e-3) -> Form:
    """The cheaper of two forms of one dW: ``form`` times the number that makes it ``dense``, if one does.

    A host and its extensions scale a LoRA in ways of their own; what they make of it is ``dense``, and what
    the file holds is the same but for a number, or it is not used.
    """
    if form is None or form.elements != dense.numel():
        return Whole(dense)
    form = form.to(dense.device, torch.float32)
    product = form.matrix().reshape(dense.shape)
    energy = float(product.pow(2).sum())
    if energy == 0:
        return Whole(dense)
    scale = float((product * dense).sum()) / energy
    rest = float((dense - scale * product).pow(2).sum())
    if rest > tolerance**2 * energy * scale**2:
        return Whole(dense)
    return form.times(scale)
