"""Which layers of a loaded denoiser the LoRAs of a cast change, by the parameter names that the family
uses."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from klora.errors import LoraFileError
from klora.files import LoraLayer, host_layer_to_canonical, in_forward_order, is_attention
from klora.files import split_layers as split
from klora.files.canonical import Part, parts_of
from klora.hosts.common.kept_files import read_kept
from klora.hosts.forge_family.storage import shape_of
from klora.planning import LayerView

_DENOISER = "diffusion_model."
_WEIGHT = ".weight"

#: The layers of a file by canonical name, fused ones taken apart.
Layers = Mapping[str, LoraLayer]


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


@dataclass(frozen=True)
class _KnownFile:
    """What can be read here of a file: its layers, and the names of those whose effect has no amount."""

    base_model: str
    layers: Layers
    of_no_amount: Collection[str]


def changed_layers(
    model: nn.Module, files: Sequence[str], touched: Sequence[Collection[str]], base_model: str
) -> dict[str, ChangedLayer]:
    """The layers of ``model`` that any of ``files`` changes, by canonical name, in forward order.

    ``touched`` are the parameters that the host found in each file; ``base_model`` says whose names the
    model's are where no file does. A fused projection is taken apart, as `klora.files.pair_layers` does. A
    module whose name the engine does not know is called as the host calls it.
    """
    parameters = dict(model.named_parameters())
    known = [_known(path) for path in files]
    told = (file.base_model for file in known if file is not None and file.base_model != "unknown")
    base_model = next(told, base_model)
    by_module: dict[str, list[str]] = {}
    for name in sorted(set().union(*touched)):
        if name.startswith(_DENOISER) and name in parameters:
            by_module.setdefault(name.rpartition(".")[0], []).append(name)
    found: dict[str, ChangedLayer] = {}
    for path, names in by_module.items():
        module = _module(path, names, parameters, base_model)
        if any(part.name in found for part in module.parts):  # another model's name that means another layer
            module = replace(module, whole=path, parts=(Part(path, ()),))
        found |= {layer.view.name: layer for layer in _layers_of(module, known, touched)}
    return {name: found[name] for name in in_forward_order(sorted(found), base_model)}


def _known(path: str) -> _KnownFile | None:
    try:
        file = read_kept(path)
    except LoraFileError:
        return None  # what is unsound was refused before; what is left only the host can read
    return _KnownFile(file.base_model, split(file), file.left_to_host)


@dataclass(frozen=True)
class _Module:
    """A module of the model: its changed ``parameters``, and the layers that it is to the engine."""

    path: str
    parameters: tuple[str, ...]
    matrix: str | None
    whole: str
    parts: tuple[Part, ...]


def _module(
    path: str, names: Sequence[str], parameters: Mapping[str, nn.Parameter], base_model: str
) -> _Module:
    weight = path + _WEIGHT
    whole = host_layer_to_canonical(weight, base_model) or path
    if weight in names and len(parameters[weight].shape) in (2, 4):
        return _Module(path, tuple(names), weight, whole, _parts(whole, parameters[weight]))
    return _Module(path, tuple(names), None, whole, (Part(whole, ()),))


def _layers_of(
    module: _Module, known: Sequence[_KnownFile | None], touched: Sequence[Collection[str]]
) -> Iterator[ChangedLayer]:
    for part in module.parts:
        touches = {
            place: touch
            for place, file in enumerate(known)
            if (touch := _touch(part.name, module, file, touched[place])) is not None
        }
        if not touches:
            continue
        can_be_weighed = all(touches[place].can_be_weighed for place in (0, 1) if place in touches)
        yield ChangedLayer(
            view=LayerView(
                part.name,
                is_attention(part.name),
                {place: touch.rank for place, touch in touches.items()},
                is_contestable=module.matrix is not None and can_be_weighed,
            ),
            module=module.path,
            parameters=module.parameters,
            weight=module.matrix,
            needs_base={place: touch.needs_base for place, touch in touches.items()},
            rows=part.rows or None,
        )


def _touch(part: str, module: _Module, file: _KnownFile | None, touched: Collection[str]) -> _Touch | None:
    """What a file that changes the parameters ``touched`` does to a part of a module."""
    weight = module.path + _WEIGHT
    is_beside = any(name in touched for name in module.parameters if name != weight)
    beside = _ONLY_BESIDE if is_beside else None
    if weight not in touched:
        return beside
    layers: Layers = {} if file is None else file.layers
    if part in layers:
        return _Touch(layers[part].rank, layers[part].needs_base, can_be_weighed=True)
    names = {module.whole, *(other.name for other in module.parts)}
    if names & layers.keys():
        return beside  # it leaves this part of a fused projection alone
    if file is not None and names & set(file.of_no_amount):
        return _OF_NO_AMOUNT  # a type without a dW to weigh, as IA3
    return _READ_BY_THE_HOST  # under a name that only the host can make out


def _parts(whole: str, weight: nn.Parameter) -> tuple[Part, ...]:
    try:
        return parts_of(whole, shape_of(weight)[0]) or (Part(whole, ()),)
    except ValueError:  # a model of its own with a name of Flux's: not to be taken apart
        return (Part(whole, ()),)
