"""Two files side by side, layer by layer, in the order of a forward pass."""

from __future__ import annotations

from dataclasses import dataclass

from klora.files.canonical import in_forward_order, is_attention
from klora.files.defects import defect_error
from klora.files.layer import LoraLayer
from klora.files.lora_file import LoraFile


@dataclass(frozen=True)
class PairedLayer:
    """A layer that one file or both touch; ``None`` where a file does not touch it."""

    name: str
    attention: bool
    content: LoraLayer | None
    style: LoraLayer | None


def split_layers(file: LoraFile) -> dict[str, LoraLayer]:
    """The layers of a file as `LoraFile.parts` has them, in a table of the caller's own."""
    return dict(file.parts)


def pair_layers(content: LoraFile, style: LoraFile) -> list[PairedLayer]:
    """Pair the layers of two files by canonical name, in forward order.

    A fused projection is always taken apart into q, k, v (and MLP). That is the finest granularity in which
    either file can have it, and it makes the plan the same whether a LoRA is stored fused or split. Layers
    left to the host are not among the pairs. Raises `LoraFileError` if the two disagree about a layer's size.
    """
    first, second = split_layers(content), split_layers(style)
    names = in_forward_order(dict.fromkeys((*first, *second)), content.base_model)
    pairs = [PairedLayer(name, is_attention(name), first.get(name), second.get(name)) for name in names]
    for pair in pairs:
        _refuse_other_size(pair, content)
    return pairs


def _refuse_other_size(pair: PairedLayer, content: LoraFile) -> None:
    if pair.content is None or pair.style is None or _matrix(pair.content) == _matrix(pair.style):
        return
    raise defect_error(
        pair.style.container.path.name,
        f"wrong input or output size: {list(pair.style.shape)} where {content.path.name} has "
        f"{list(pair.content.shape)}",
        "pick two LoRAs for the same base model",
        layer=pair.name,
    )


def _matrix(layer: LoraLayer) -> tuple[int, ...]:
    """The shape without a kernel of 1 x 1: SD1's ``proj_in`` is a convolution in one trainer, a linear in
    another."""
    return layer.shape[:2] if layer.shape[2:] == (1, 1) else layer.shape
