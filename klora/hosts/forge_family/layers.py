"""Which layers of a loaded denoiser two LoRAs contest, by the parameter names that the family uses."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn

from klora.errors import HostError, LoraFileError
from klora.files import LoraLayer, forward_position, host_layer_to_canonical, is_attention, read_lora
from klora.files import split_layers as split
from klora.weights import LayerView

_DENOISER = "diffusion_model."
_WEIGHT = ".weight"


@dataclass(frozen=True)
class ContestedLayer:
    """A linear or convolution that both LoRAs change, and the parameters of it that either changes."""

    view: LayerView
    weight: str
    parameters: tuple[str, ...]
    needs_base: tuple[bool, bool]


def contested_layers(
    model: nn.Module, files: tuple[str, str], touched: tuple[Collection[str], Collection[str]]
) -> dict[str, ContestedLayer]:
    """The contested layers of ``model`` by canonical name, in the order of a forward pass.

    ``touched`` are the parameters that the host found in each of the two ``files``. Raises `HostError` if
    a layer's weight is in a storage that cannot be exchanged.
    """
    parameters = dict(model.named_parameters())
    known = (_known_layers(files[0]), _known_layers(files[1]))
    either = set(touched[0]) | set(touched[1])
    found = {}
    for weight in set(touched[0]) & set(touched[1]):
        if not _is_of_a_layer(weight, parameters):
            continue
        name = host_layer_to_canonical(weight, "unknown") or weight.removesuffix(_WEIGHT)
        if any(layers is not None and name not in layers for layers in known):
            continue  # a type without a dW to weigh, as IA3 and norms: it stays with the host
        _refuse_quantised(weight, parameters[weight])
        beside = weight.removesuffix(_WEIGHT) + ".bias"
        ranks = [None if layers is None else layers[name].rank for layers in known]
        found[name] = ContestedLayer(
            view=LayerView(name, is_attention(name), *ranks),
            weight=weight,
            parameters=(weight, beside) if beside in either else (weight,),
            # A file that only the host understands may hold a type that depends on the base weight.
            needs_base=(_needs_base(known[0], name), _needs_base(known[1], name)),
        )
    return {name: found[name] for name in sorted(found, key=_place)}


def _known_layers(path: str) -> Mapping[str, LoraLayer] | None:
    try:
        return split(read_lora(path))
    except LoraFileError:
        return None  # what is unsound was refused before; what is left only the host can read


def _needs_base(layers: Mapping[str, LoraLayer] | None, name: str) -> bool:
    return layers is None or layers[name].needs_base


def _is_of_a_layer(weight: str, parameters: Mapping[str, nn.Parameter]) -> bool:
    return (
        weight.startswith(_DENOISER)
        and weight.endswith(_WEIGHT)
        and weight in parameters
        and parameters[weight].ndim in (2, 4)
    )


def _refuse_quantised(name: str, parameter: nn.Parameter) -> None:
    is_quantised = hasattr(parameter, "gguf_cls") or hasattr(parameter, "quant_state")
    if is_quantised or not parameter.is_floating_point():
        raise HostError(
            f"K-LoRA cannot exchange weights of this checkpoint, which is quantised ({name} is "
            f"{parameter.dtype}); load it in fp16, bf16 or fp8, or untick K-LoRA."
        )


def _place(layer: str) -> tuple[tuple[int, ...], str]:
    return forward_position(layer) or (sys.maxsize,), layer
