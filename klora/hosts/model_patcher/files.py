"""Which LoRA file put which patch on the denoiser: these hosts do not write it down.

The host adds each file's patches by a call of ``networks.load_lora_for_models``. That call is watched, and
what it added is noted on the patcher that it returns. Nothing is changed, so watching twice is harmless.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from klora.hosts.forge_family import Patch, Patches
from klora.hosts.model_patcher.wrappers import all_patches

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
        before = {id(patch) for patch in _all(all_patches(model))}
        result = original(model, *arguments, **keywords)
        patched = result[0]
        if patched is not model and "filename" in keywords:
            added = {
                name: [patch for patch in found if id(patch) not in before]
                for name, found in all_patches(patched).items()
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


def _all(patches: Patches) -> Iterator[Patch]:
    for found in patches.values():
        yield from found


def noted(unet: Any) -> Mapping[str, Patches] | None:
    """What the files put on a patcher or the one that it was cloned from; ``None`` if nobody watched."""
    while unet is not None:
        if hasattr(unet, _NOTE):
            files: Mapping[str, Patches] = getattr(unet, _NOTE)
            return files
        unet = getattr(unet, "parent", None)
    return None
