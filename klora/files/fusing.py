"""One LoRA for a fused module out of LoRAs for some of its projections, as kohya's files need it."""

from __future__ import annotations

import torch
from torch import Tensor

from klora.files.canonical import parts_of, whole_rows
from klora.files.kinds import BESIDE
from klora.files.layer import LoraLayer, take_rows

Tensors = dict[str, Tensor]


def bias_of(layer: LoraLayer) -> Tensor | None:
    """What the layer adds to the module's bias, all of it or the part's rows."""
    if "bias" in layer.keys:
        raise layer.error(
            "it replaces the bias as a whole, which no other dialect holds", "use the file as it is"
        )
    if "diff_b" in layer.keys:
        bias = layer.tensor("diff_b")
    elif "lora_bias" in layer.keys:
        bias = layer.tensor("lora_bias").float() * layer.scale
    else:
        return None
    outputs = (layer.whole_shape or layer.shape)[0]
    if bias.numel() != outputs:
        raise layer.error(f"its bias has {bias.numel()} numbers for {outputs} outputs", "report this file")
    return bias.flatten() if layer.rows is None else take_rows(bias.flatten(), layer.rows)


def fused(whole: str, layers: list[LoraLayer]) -> Tensors:
    """One LoRA for a fused module out of LoRAs for some of its projections.

    Low-rank ones stay so: the ups on a block diagonal, the downs stacked, the scale multiplied in. Others
    become a full difference.
    """
    rows = whole_rows(whole, {part.name: part.shape[0] for layer in layers for part in layer.parts()})
    if rows is None:
        raise layers[0].error("it does not fit the fused projection that it is part of", "report this file")
    for layer in layers:
        if layer.needs_base:
            raise layer.error(
                f"a {layer.kind} layer for a part of a fused projection cannot be written as kohya",
                "use a host that reads the file's own dialect",
            )
    biases = _fused_bias(whole, rows, layers)
    if all(set(layer.keys) <= {"lora_up.weight", "lora_down.weight"} | BESIDE for layer in layers):
        return {**_block_diagonal(whole, rows, layers), **biases}
    dense = torch.zeros(rows, *layers[0].shape[1:])
    for layer in layers:
        for part in layer.parts():
            _place(dense, whole, part.name, part.delta())
    return {"diff": dense, **biases}


def _fused_bias(whole: str, rows: int, layers: list[LoraLayer]) -> Tensors:
    biases = [
        (part.name, bias) for layer in layers for part in layer.parts() if (bias := bias_of(part)) is not None
    ]
    if not biases:
        return {}
    fused = torch.zeros(rows)
    for part, bias in biases:
        _place(fused, whole, part, bias.float())
    return {"diff_b": fused}


def _block_diagonal(whole: str, rows: int, layers: list[LoraLayer]) -> Tensors:
    rank = sum(layer.stored_rank or 0 for layer in layers)
    up, column = torch.zeros(rows, rank), 0
    downs = []
    for layer in layers:
        down = layer.tensor("lora_down.weight").float().flatten(1)
        scaled = layer.tensor("lora_up.weight").float().flatten(1) * layer.scale
        columns = slice(column, column + down.shape[0])
        for part in layer.parts():
            _place(up[:, columns], whole, part.name, take_rows(scaled, part.rows or ((0, rows),)))
        downs.append(down)
        column += down.shape[0]
    return {
        "lora_up.weight": up,
        "lora_down.weight": torch.cat(downs),
        "alpha": torch.tensor(float(rank)),
    }


def _place(target: Tensor, whole: str, part: str, values: Tensor) -> None:
    """Write the rows of ``part`` where they belong in the fused matrix ``target``."""
    ranges = next(one.rows for one in parts_of(whole, target.shape[0]) if one.name == part)
    start = 0
    for first, last in ranges:
        target[first:last] = values[start : start + last - first]
        start += last - first
