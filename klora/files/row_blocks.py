"""Some rows of dW, of each type, without the others: what a layer needs in memory does not grow with dW.

``tensors`` are a layer's parameters in fp32 or fp64, by their names in kohya's and LyCORIS's spelling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

from klora.files.kinds import Kind, Tensors, glora_is_new, lokr_factor
from klora.files.late_torch import Tensor, torch

#: Elements of dW that are formed at a time; 8 MiB in fp32.
BLOCK_ELEMENTS = 2**21


def block_bounds(rows: int, width: int, elements: int = BLOCK_ELEMENTS) -> Iterator[tuple[int, int]]:
    """(start, stop) of blocks of about ``elements`` elements, for ``rows`` rows of ``width`` elements."""
    height = max(1, elements // max(1, width))
    return pairwise([*range(0, rows, height), rows])


def form_rows(kind: Kind, tensors: Tensors, base: Tensor | None, which: slice) -> Tensor:
    """The rows ``which`` of dW before scaling; ``base`` is the whole clean weight, for GLoRA."""
    if kind.name == "lokr":
        return _lokr_rows(tensors, which)
    cut = _CUTS[kind.name]
    return kind.form(cut(tensors, which), None if base is None else base[which])


def _cut_first(*names: str) -> Callable[[Tensors, slice], Tensors]:
    def cut(tensors: Tensors, which: slice) -> Tensors:
        return {**tensors, **{name: tensors[name][which] for name in names}}

    return cut


def _cut_loha(tensors: Tensors, which: slice) -> Tensors:
    halves = {}
    for half in "12":
        name = f"hada_w{half}_a"
        # Beside a Tucker core the factor stands the other way round.
        tucker = f"hada_t{half}" in tensors
        halves[name] = tensors[name][:, which] if tucker else tensors[name][which]
    return {**tensors, **halves}


def _cut_glora(tensors: Tensors, which: slice) -> Tensors:
    shapes = (tuple(tensors[f"{one}.weight"].shape) for one in ("a1", "a2", "b1", "b2"))
    name = "b1.weight" if glora_is_new(*shapes) else "b2.weight"
    return {**tensors, name: tensors[name][which]}


_CUTS: Mapping[str, Callable[[Tensors, slice], Tensors]] = {
    "lora": _cut_first("lora_up.weight"),
    "loha": _cut_loha,
    "full": _cut_first("diff"),
    "glora": _cut_glora,
}


def _lokr_rows(tensors: Tensors, which: slice) -> Tensor:
    """Each row of w1 makes as many rows of dW as w2 has."""
    first, second = lokr_factor(tensors, "1"), lokr_factor(tensors, "2")
    height = second.shape[0]
    wanted = torch.arange(first.shape[0] * height, device=first.device)[which]
    outer = torch.einsum("nb,nd...->nbd...", first[wanted // height], second[wanted % height])
    return outer.flatten(1, 2)


def lokr_singular_values(tensors: Tensors, rows: tuple[int, int] | None) -> Tensor | None:
    """Singular values of a LoKr, without forming it: those of w1 times those of w2, in no order.

    ``rows`` are the rows of dW that are meant; ``None`` if they are not whole rows of w1.
    """
    first, second = lokr_factor(tensors, "1").double(), lokr_factor(tensors, "2").double()
    height = second.shape[0]
    if rows is not None:
        if rows[0] % height or rows[1] % height:
            return None
        first = first[rows[0] // height : rows[1] // height]
    values = (torch.linalg.svdvals(one.flatten(1)) for one in (first, second))
    return torch.outer(*values).flatten()
