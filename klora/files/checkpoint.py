"""The few weights that a DoRA or a GLoRA needs, out of a checkpoint's file."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from klora.files.canonical import parts_of
from klora.files.container import FLOATS, Container, open_container
from klora.files.defects import defect_error
from klora.files.layer import LoraLayer, take_rows
from klora.files.native import canonical_name

_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.", "transformer.")
_WEIGHT = ".weight"


class Checkpoint:
    """A base model's safetensors file, of which only the header is in memory until a weight is asked for.

    Takes the WebUIs' checkpoints, and diffusers' ``diffusion_pytorch_model.safetensors``. ``base_model`` is
    as in `LoraFile.base_model`: it says whose native names the file has. Raises `LoraFileError` for a file
    that is not sound.
    """

    def __init__(self, path: str | os.PathLike[str], base_model: str) -> None:
        self._container: Container = open_container(Path(path))
        self._keys: dict[str, str] = {}
        self._inside: dict[str, tuple[str, tuple[tuple[int, int], ...]]] = {}
        for key, entry in self._container.entries.items():
            name = _layer(key, base_model)
            if name is None or entry.dtype not in FLOATS or len(entry.shape) < 2:
                continue
            self._keys.setdefault(name, key)
            if entry.shape[0] > 0:
                self._note_parts(name, entry.shape[0])

    def _note_parts(self, whole: str, rows: int) -> None:
        try:
            parts = parts_of(whole, rows)
        except ValueError:
            return  # a model of its own under a known name: it is not taken apart
        for part in parts:
            self._inside[part.name] = (whole, part.rows)

    def base_of(self, layer: LoraLayer) -> Tensor:
        """The clean weight W for `LoraLayer.delta` of ``layer``, in fp32; for a part that of the whole layer.

        Raises `LoraFileError` if the checkpoint has no such layer, or not of that size.
        """
        name, rows = layer.name, layer.rows
        weight = self._whole_of(layer) if rows is not None else self._weight(name)
        if weight is None:
            raise defect_error(
                self._container.path.name,
                "it has no such layer in floating-point numbers",
                f"name the checkpoint that {layer.container.path.name} was trained on, in fp16, bf16 or fp32",
                layer=name,
            )
        return weight

    def _weight(self, name: str) -> Tensor | None:
        """The weight of the layer ``name``: its own, its rows of a fused one, or its parts put together."""
        if name in self._keys:
            return self._read(self._keys[name])
        if name in self._inside:
            whole, rows = self._inside[name]
            return take_rows(self._read(self._keys[whole]), rows)
        return None

    def _whole_of(self, part: LoraLayer) -> Tensor | None:
        """The weight of the fused layer that ``part`` is in; from its split projections if need be."""
        if part.name in self._inside:
            return self._read(self._keys[self._inside[part.name][0]])
        siblings = part.siblings()
        weights = [self._weight(one.name) for one in siblings]
        found = [one for one in weights if one is not None]
        if not found or len(found) < len(weights):
            return None
        whole = torch.empty(part.whole_shape[0], *found[0].shape[1:])
        for sibling, weight in zip(siblings, found, strict=True):
            start = 0
            for first, last in sibling.rows or ():
                whole[first:last] = weight[start : start + last - first]
                start += last - first
        return whole

    def _read(self, key: str) -> Tensor:
        return self._container.read(key).float()


def _layer(key: str, base_model: str) -> str | None:
    if not key.endswith(_WEIGHT):
        return None
    path = key.removesuffix(_WEIGHT)
    for prefix in _PREFIXES:
        path = path.removeprefix(prefix)
    return canonical_name(path, base_model)
