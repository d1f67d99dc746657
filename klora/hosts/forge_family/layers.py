"""Which layers of a loaded denoiser the LoRAs of a cast change, by the parameter names that the family
uses."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from klora.errors import LoraFileError
from klora.files import LoraLayer, host_layer_to_canonical, in_forward_order, is_attention, read_lora
from klora.files import split_layers as split
from klora.files.canonical import Part, parts_of
from klora.hosts.forge_family.storage import shape_of
from klora.planning import LayerView

_DENOISER = "diffusion_model."
_WEIGHT = ".weight"

#: The layers of a file by canonical name, fused ones taken apart; ``None`` if only the host can read it.
KnownLayers = Mapping[str, LoraLayer] | None


@dataclass(frozen=True)
class ChangedLayer:
    """A module of the denoiser, or a projection inside a fused one, that a LoRA of the cast changes.

    ``parameters`` are those of the module that any LoRA changes, ``weight`` is the matrix or kernel among
    them, if there is one. ``needs_base`` tells of each LoRA that changes the layer, by its place in the
    cast, whether what it adds may depend on the clean weight. ``rows`` are set for a projection inside a
    fused one, as q in Flux's ``qkv``: the row ranges of the parameters that are this layer.
    """

    view: LayerView
    module: str
    parameters: tuple[str, ...]
    weight: str | None
    needs_base: Mapping[int, bool]
    rows: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True)
class _Touch:
    """What one LoRA does to a layer; ``can_be_weighed``: by a change of the matrix that has an amount."""

    rank: int | None
    needs_base: bool
    can_be_weighed: bool


_ONLY_BESIDE = _Touch(None, needs_base=False, can_be_weighed=False)
_OF_NO_AMOUNT = _Touch(None, needs_base=True, can_be_weighed=False)
# A file that only the host understands may hold a type that depends on the clean weight.
_READ_BY_THE_HOST = _Touch(None, needs_base=True, can_be_weighed=True)


def changed_layers(
    model: nn.Module, files: Sequence[str], touched: Sequence[Collection[str]]
) -> dict[str, ChangedLayer]:
    """The layers of ``model`` that any of ``files`` changes, by canonical name, in forward order.

    ``touched`` are the parameters that the host found in each file. A fused projection is taken apart, as
    `klora.files.pair_layers` does. A module whose name no engine knows is called as the host calls it.
    """
    parameters = dict(model.named_parameters())
    known, base_model = known_layers(files), _base_model(files)
    modules: dict[str, list[str]] = {}
    for name in sorted(set().union(*touched)):
        if name.startswith(_DENOISER) and name in parameters:
            modules.setdefault(name.rpartition(".")[0], []).append(name)
    found = {
        layer.view.name: layer
        for module, names in modules.items()
        for layer in _layers_of(module, names, parameters, known, touched, base_model)
    }
    return {name: found[name] for name in in_forward_order(sorted(found))}


def known_layers(files: Sequence[str]) -> list[KnownLayers]:
    """The layers of each file, as far as they can be read here."""
    return [_known(path) for path in files]


def _known(path: str) -> KnownLayers:
    try:
        return split(read_lora(path))
    except LoraFileError:
        return None  # what is unsound was refused before; what is left only the host can read


def _base_model(files: Sequence[str]) -> str:
    """That of the first file which tells: it says whose native names the parameters have."""
    for path in files:
        try:
            name = read_lora(path).base_model
        except LoraFileError:
            continue  # as above
        if name != "unknown":
            return name
    return "unknown"


def _layers_of(
    module: str,
    names: Sequence[str],
    parameters: Mapping[str, nn.Parameter],
    known: Sequence[KnownLayers],
    touched: Sequence[Collection[str]],
    base_model: str,
) -> Iterator[ChangedLayer]:
    weight = module + _WEIGHT
    is_matrix = weight in names and len(parameters[weight].shape) in (2, 4)
    whole = host_layer_to_canonical(weight, base_model) or module
    parts = _parts(whole, parameters[weight]) if is_matrix else (Part(whole, ()),)
    for part in parts:
        touches = {
            place: touch
            for place, layers in enumerate(known)
            if (touch := _touch(part.name, parts, layers, names, touched[place], weight)) is not None
        }
        if not touches:
            continue
        yield ChangedLayer(
            view=LayerView(
                part.name,
                is_attention(part.name),
                {place: touch.rank for place, touch in touches.items()},
                is_matrix and all(touches[place].can_be_weighed for place in (0, 1) if place in touches),
            ),
            module=module,
            parameters=tuple(names),
            weight=weight if is_matrix else None,
            needs_base={place: touch.needs_base for place, touch in touches.items()},
            rows=part.rows or None,
        )


def _touch(
    part: str,
    parts: Sequence[Part],
    layers: KnownLayers,
    names: Sequence[str],
    touched: Collection[str],
    weight: str,
) -> _Touch | None:
    """What a file of ``layers`` that changes the parameters ``touched`` does to a part of a module."""
    beside = _ONLY_BESIDE if any(name in touched for name in names if name != weight) else None
    if weight not in touched:
        return beside
    if layers is None:
        return _READ_BY_THE_HOST
    layer = layers.get(part)
    if layer is not None:
        return _Touch(layer.rank, layer.needs_base, can_be_weighed=True)
    # It may leave this part of a fused projection alone, or have a type without a dW to weigh, as IA3.
    return beside if any(other.name in layers for other in parts) else _OF_NO_AMOUNT


def _parts(whole: str, weight: nn.Parameter) -> tuple[Part, ...]:
    try:
        return parts_of(whole, shape_of(weight)[0]) or (Part(whole, ()),)
    except ValueError:  # a model of its own with a name of Flux's: not to be taken apart
        return (Part(whole, ()),)
