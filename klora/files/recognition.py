"""What a file's keys are about: its dialect, its base model, and a target for each key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from klora.files.base_model import Identified, Path, identify
from klora.files.canonical import is_embedder
from klora.files.container import Container
from klora.files.defects import UnknownDialectError, defect_error, shown
from klora.files.dialects import DENOISER, DIALECTS, Dialect, Place
from klora.files.kinds import WHOLE, Defect, Shape, kind_of
from klora.files.models import BY_NAME
from klora.files.models.text_encoders import GRAMMAR as TEXT_ENCODERS
from klora.files.native import canonical_from_flat, canonical_name
from klora.files.parameters import split_key


@dataclass(frozen=True)
class Target:
    """What a key is about: a component of the model, a layer of it, and a parameter of that layer.

    ``left_as`` is the type of a layer that is left to the host whatever its parameters are; ``path`` is what
    the file calls the layer.
    """

    component: str
    layer: str
    parameter: str
    left_as: str | None = None
    path: str = ""


@dataclass(frozen=True)
class Recognised:
    """A file's keys, all understood: key -> target, and the base model that they tell."""

    dialect: str
    targets: dict[str, Target]
    model: Identified


#: Textual-inversion embeddings that trainers bundle with a LoRA; a host knows what to do with them.
_WORD = re.compile(r"[._]")
_BUNDLED = re.compile(r"bundle_emb\.(?P<name>.+?)\.(?P<parameter>.+)")

#: Early diffusers wrote a text encoder's projections under the names of the UNet's.
_EARLY_CLIP = {
    **{"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out.0": "out_proj"},
    # Of the four that each projection got, only its own was ever applied (diffusers#3437).
    **{"q_proj.to_q": "q_proj", "k_proj.to_k": "k_proj", "v_proj.to_v": "v_proj"},
    "out_proj.to_out.0": "out_proj",
}


def recognise(container: Container) -> Recognised:
    """Find the dialect and the base model of a file, and name the layer of each key.

    Raises `UnknownDialectError` with counts and the first unknown key if any key is not understood.
    """
    keys = tuple(container.entries)
    dialect = next((one for one in DIALECTS if one.detect(keys)), None)
    placed = {key: one for key in keys if (one := _placed(key, dialect)) is not None}
    model = identify(
        _shapes(placed, container), {place[0] for place, _ in placed.values()}, container.metadata
    )
    targets: dict[str, Target] = {}
    for key in keys:
        target = _target(key, placed.get(key), model, container.entries[key].shape)
        if target is not None:
            targets[key] = target
    if dialect is None or len(targets) < len(keys):
        raise _not_understood(keys, targets, dialect, container.path.name)
    return Recognised(dialect.name, targets, model)


def _not_understood(
    keys: Sequence[str], targets: Mapping[str, Target], dialect: Dialect | None, file: str
) -> Exception:
    first = shown(next((key for key in keys if key not in targets), keys[0]))
    known = "" if dialect is None else f" as {dialect.name}"
    return defect_error(
        file,
        f"{len(targets)} of {len(keys)} keys understood{known}; first unknown: {first}",
        f"its layers were looked for in {', '.join(BY_NAME)}; report this key if it is for one of them",
        error=UnknownDialectError,
    )


def _placed(key: str, dialect: Dialect | None) -> tuple[Place, str] | None:
    """Where a key's layer is, and the parameter."""
    if dialect is None or _BUNDLED.fullmatch(key) or (split := split_key(key)) is None:
        return None
    place = dialect.place(split[0])
    return None if place is None else (place, split[1])


def _shapes(placed: Mapping[str, tuple[Place, str]], container: Container) -> dict[Path, Shape | None]:
    """dW's shape of each of the denoiser's layers, ``None`` where the parameters do not make one."""
    grouped: dict[Path, dict[str, Shape]] = {}
    for key, ((component, path), parameter) in placed.items():
        if component == DENOISER:
            grouped.setdefault(path, {})[parameter] = container.entries[key].shape
    # Vectors tell no model from another, and tables of modulations are under no layer's name.
    layers = {path: shapes for path, shapes in grouped.items() if not _is_beside(shapes)}
    return {path: _shape(shapes) for path, shapes in (layers or grouped).items()}


def _is_beside(shapes: Mapping[str, Shape]) -> bool:
    return all(parameter in WHOLE and _is_no_matrix(shape) for parameter, shape in shapes.items())


def _is_no_matrix(shape: Shape) -> bool:
    return len(shape) in (0, 1, 3)


def _shape(shapes: Mapping[str, Shape]) -> Shape | None:
    try:
        return kind_of(shapes).geometry(shapes).shape
    except Defect:
        return None


def _target(key: str, placed: tuple[Place, str] | None, model: Identified, shape: Shape) -> Target | None:
    if bundled := _BUNDLED.fullmatch(key):
        return Target("embedding", bundled["name"], bundled["parameter"])
    if placed is None:
        return None
    (component, path), parameter = placed
    if component != DENOISER:
        name = _text_name(component, path)
        left_as = "text encoder" if name is None else None
        return Target(component, name or f"{component}.{path.text}", parameter, left_as, path.text)
    name = _denoiser_name(path, model)
    if name is not None:
        return Target(component, name, parameter, "embedder" if is_embedder(name) else None, path.text)
    # Outside of the blocks there is no attention, so the comparison does without; nor is there in a vector or
    # a table of modulations.
    outside = not any(word.isdigit() for word in _WORD.split(path.text))
    if model.reading is not None and (outside or (parameter in WHOLE and _is_no_matrix(shape))):
        return Target(component, path.text, parameter, "other")
    return None


def _denoiser_name(path: Path, model: Identified) -> str | None:
    reading = "unknown" if model.reading is None else model.reading.name
    return canonical_from_flat(path.text, reading) if path.flat else canonical_name(path.text, reading)


def _text_name(component: str, path: Path) -> str | None:
    if path.flat:
        found = TEXT_ENCODERS.find_flat(path.text)
    else:
        head, separator, leaf = path.text.partition(".self_attn.")
        found = TEXT_ENCODERS.find(head + separator + _EARLY_CLIP.get(leaf, leaf))
    return None if found is None else f"{component}.{found.name}"
