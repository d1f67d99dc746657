"""What a file's keys are about: its dialect, its base model, and a target for each key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from klora.files.base_model import Identified, Path, identify
from klora.files.container import Container
from klora.files.defects import UnknownDialectError, defect_error, shown
from klora.files.dialects import DENOISER, DIALECTS, Dialect, Place
from klora.files.kinds import Defect, Shape, kind_of
from klora.files.models.text_encoders import GRAMMAR as TEXT_ENCODERS
from klora.files.native import canonical_from_flat, canonical_name
from klora.files.parameters import split_key


@dataclass(frozen=True)
class Target:
    """What a key is about: a component of the model, a layer of it, and a parameter of that layer."""

    component: str
    layer: str
    parameter: str


@dataclass(frozen=True)
class Recognised:
    """A file's keys, all understood: key -> target, and the base model that they tell."""

    dialect: str
    targets: dict[str, Target]
    model: Identified


#: Textual-inversion embeddings that trainers bundle with a LoRA; a host knows what to do with them.
_BUNDLED = re.compile(r"bundle_emb\.(?P<name>.+?)\.(?P<parameter>.+)")

#: Early diffusers wrote a text encoder's projections under the names of the UNet's.
_EARLY_CLIP = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out.0": "out_proj"}


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
        target = _target(key, placed.get(key), model)
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
        "use a LoRA for Stable Diffusion 1, 2, XL, 3 or Flux, or report this key",
        kind=UnknownDialectError,
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
    return {path: _shape(shapes) for path, shapes in grouped.items()}


def _shape(shapes: Mapping[str, Shape]) -> Shape | None:
    try:
        return kind_of(shapes).geometry(shapes).shape
    except Defect:
        return None


def _target(key: str, placed: tuple[Place, str] | None, model: Identified) -> Target | None:
    if bundled := _BUNDLED.fullmatch(key):
        return Target("embedding", bundled["name"], bundled["parameter"])
    if placed is None:
        return None
    (component, path), parameter = placed
    name = _denoiser_name(path, model) if component == DENOISER else _text_name(component, path)
    return None if name is None else Target(component, name, parameter)


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
