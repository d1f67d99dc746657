"""Which layers of a loaded denoiser two LoRAs contest, by the parameter names that the family uses."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn

from klora.errors import LoraFileError
from klora.files import LoraLayer, forward_position, host_layer_to_canonical, is_attention, read_lora
from klora.files import split_layers as split
from klora.files.canonical import Part, parts_of
from klora.hosts.forge_family.storage import refuse_quantised, shape_of
from klora.weights import LayerView

_DENOISER = "diffusion_model."
_WEIGHT = ".weight"


@dataclass(frozen=True)
class ContestedLayer:
    """A linear or convolution that both LoRAs change, and the parameters of it that either changes.

    ``rows`` are set for a projection inside a fused one, as q in Flux's ``qkv``: the row ranges of the
    parameters that are this layer.
    """

    view: LayerView
    weight: str
    parameters: tuple[str, ...]
    needs_base: tuple[bool, bool]
    rows: tuple[tuple[int, int], ...] | None = None


def contested_layers(
    model: nn.Module,
    files: tuple[str, str],
    touched: tuple[Collection[str], Collection[str]],
) -> dict[str, ContestedLayer]:
    """The contested layers of ``model`` by canonical name, in the order of a forward pass.

    ``touched`` are the parameters that the host found in each of the two ``files``. A fused projection is
    taken apart, as `klora.files.pair_layers` does. Raises `HostError` if a layer's weight is in a storage
    that is neither exchanged nor left in place.
    """
    parameters = dict(model.named_parameters())
    known = (_known_layers(files[0]), _known_layers(files[1]))
    base_model = _base_model(files)
    either = set(touched[0]) | set(touched[1])
    found = {}
    for weight in set(touched[0]) & set(touched[1]):
        if not _is_of_a_layer(weight, parameters):
            continue
        whole = host_layer_to_canonical(weight, base_model) or weight.removesuffix(_WEIGHT)
        for part in _parts(whole, parameters[weight]):
            if any(layers is not None and part.name not in layers for layers in known):
                continue  # one file leaves this part alone, or has a type without a dW to weigh, as IA3
            refuse_quantised(weight, parameters[weight])
            beside = weight.removesuffix(_WEIGHT) + ".bias"
            ranks = [None if layers is None else layers[part.name].rank for layers in known]
            found[part.name] = ContestedLayer(
                view=LayerView(part.name, is_attention(part.name), *ranks),
                weight=weight,
                parameters=(weight, beside) if beside in either else (weight,),
                # A file that only the host understands may hold a type that depends on the base weight.
                needs_base=(_needs_base(known[0], part.name), _needs_base(known[1], part.name)),
                rows=part.rows or None,
            )
    return {name: found[name] for name in sorted(found, key=_place)}


def _parts(whole: str, weight: nn.Parameter) -> tuple[Part, ...]:
    try:
        return parts_of(whole, shape_of(weight)[0]) or (Part(whole, ()),)
    except ValueError:  # a model of its own with a name of Flux's: not to be taken apart
        return (Part(whole, ()),)


def _known_layers(path: str) -> Mapping[str, LoraLayer] | None:
    try:
        return split(read_lora(path))
    except LoraFileError:
        return None  # what is unsound was refused before; what is left only the host can read


def _base_model(files: tuple[str, str]) -> str:
    """That of the first file which tells: it says whose native names the parameters have."""
    names = []
    for path in files:
        try:
            names.append(read_lora(path).base_model)
        except LoraFileError:
            continue  # as above
    return next((name for name in names if name != "unknown"), "unknown")


def _needs_base(layers: Mapping[str, LoraLayer] | None, name: str) -> bool:
    return layers is None or layers[name].needs_base


def _is_of_a_layer(weight: str, parameters: Mapping[str, nn.Parameter]) -> bool:
    return (
        weight.startswith(_DENOISER)
        and weight.endswith(_WEIGHT)
        and weight in parameters
        and len(parameters[weight].shape) in (2, 4)
    )


def _place(layer: str) -> tuple[tuple[int, ...], str]:
    return forward_position(layer) or (sys.maxsize,), layer
