"""Which LoRA file put which patch on the denoiser: these hosts do not write it down.

The host adds each file's patches by a call of ``networks.load_lora_for_models``. That call is watched, and
what it added is noted on the patcher that it returns. Nothing is changed, so watching twice is harmless.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

Patch = Sequence[Any]
#: Parameter -> the patches that one file put on it.
Own = Mapping[str, Sequence[Patch]]

_WATCHED = "load_lora_for_models"
_NOTE = "klora_files"


def is_watched(networks: Any) -> bool:
    """Whether the host's function is watched already."""
    return hasattr(getattr(networks, _WATCHED), _NOTE)


def watch(networks: Any) -> None:
    """From now on note what each file adds. Another extension's wrapper stays in place, inside or outside."""
    original = getattr(networks, _WATCHED)

    @functools.wraps(original)
    def load_lora_for_models(model: Any, *arguments: Any, **keywords: Any) -> Any:
        before = {id(patch) for patch in _all(model.patches)}
        result = original(model, *arguments, **keywords)
        patched = result[0]
        if patched is not model and "filename" in keywords:
            added = {
                name: [patch for patch in found if id(patch) not in before]
                for name, found in patched.patches.items()
            }
            _note(model, patched, keywords["filename"], {name: own for name, own in added.items() if own})
        return result

    setattr(load_lora_for_models, _NOTE, original)
    setattr(networks, _WATCHED, load_lora_for_models)


def unwatch(networks: Any) -> None:
    """Give the host its function back, unless another extension has wrapped ours since."""
    original = getattr(getattr(networks, _WATCHED), _NOTE, None)
    if original is not None:
        setattr(networks, _WATCHED, original)


def _note(model: Any, patched: Any, path: str, added: Mapping[str, list[Patch]]) -> None:
    files = dict(getattr(model, _NOTE, {}))
    before = files.get(path, {})  # a prompt may name one file twice
    files[path] = {name: [*before.get(name, ()), *added.get(name, ())] for name in {**before, **added}}
    setattr(patched, _NOTE, files)


def _all(patches: Mapping[str, Sequence[Patch]]) -> Iterator[Patch]:
    for found in patches.values():
        yield from found


def noted(unet: Any) -> Mapping[str, Own] | None:
    """What the files put on a patcher or the one that it was cloned from; ``None`` if nobody watched."""
    while unet is not None:
        if hasattr(unet, _NOTE):
            files: Mapping[str, Own] = getattr(unet, _NOTE)
            return files
        unet = getattr(unet, "parent", None)
    return None


def of(own: Own, patches: Mapping[str, Sequence[Patch]], name: str) -> list[Patch]:
    """The patches of a parameter that a file put there."""
    return [patch for patch in patches.get(name, ()) if _is_in(patch, own.get(name, ()))]


def without(owns: Collection[Own], patches: Mapping[str, Sequence[Patch]], name: str) -> list[Patch]:
    """The patches of a parameter in the host's order, less those of some files."""
    return [
        patch for patch in patches.get(name, ()) if not any(_is_in(patch, own.get(name, ())) for own in owns)
    ]


def unpacked(weight: Tensor) -> Tensor:
    """A weight in any storage of the hosts as numbers: the storages know how to unpack themselves."""
    if getattr(weight, "gguf_cls", None) is not None:
        return weight.dequantize_as_pytorch_parameter()  # type: ignore[attr-defined,no-any-return]
    return weight.dequantize() if hasattr(weight, "_qdata") else weight


def _is_in(patch: Patch, own: Sequence[Patch]) -> bool:
    """Whether it is one of them, or a copy around the same weights with, for example, another strength."""
    return any(patch is one for one in own) or any(
        part is weights for part in patch for one in own for weights in one if _holds_tensors(weights)
    )


def _holds_tensors(part: Any) -> bool:
    parts = getattr(part, "weights", part)
    return isinstance(parts, list | tuple) and any(isinstance(one, Tensor | list | tuple) for one in parts)


def numbers(own: Own, patches: Mapping[str, Sequence[Patch]]) -> Hashable:
    """How strong a file is applied, also where another extension changed it layer by layer."""
    found: dict[tuple[float, ...], list[str]] = {}
    for name in own:
        for patch in of(own, patches, name):
            key = tuple(one for one in patch if isinstance(one, float | int))
            found.setdefault(key, []).append(name)
    return tuple((key, len(names), hash(tuple(names))) for key, names in found.items())
