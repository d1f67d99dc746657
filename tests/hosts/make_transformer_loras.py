"""Seeded LoRA files for a checkpoint of a transformer, read off its header, in its trainers' dialects."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tests.hosts.make_loras import ROLES, seeded_layer

_DENOISER = "model.diffusion_model."
_LEAF = r"qkv|out|proj|[qkvo]|to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out"
_ATTENTION = rf"[a-z_]*(?:attn|attention)[12]?\.(?:{_LEAF})"
_OTHERS = r"feed_forward\.w[123]|(?:img_|txt_)?mlp\.(?:fc[12]|net\.(?:0\.proj|2))|ffn\.[02]"
_LAYER = re.compile(rf"((?:.+\.)(?:{_ATTENTION}|{_OTHERS}))\.weight")

#: By these rows, ninths for q, k, v and a gated MLP, a file is Klein's and not Flux.1's.
_OF_KLEIN = re.compile(r"(single_blocks\.\d+\.linear[12])\.weight")


def make_transformer_loras(checkpoint: Path, folder: Path) -> None:
    """Write ``content-NAME`` and ``style-NAME`` for the checkpoint NAME with kohya's names, ``-native`` with
    the model's own, ``-split`` with q, k and v apart. The content also changes layers outside attention."""
    for role in ("content", "style"):
        rank, everywhere, seed = ROLES[role]
        kohya: dict[str, Tensor] = {}
        native: dict[str, Tensor] = {}
        for path, shape in _layers(checkpoint):
            if checkpoint.stem == "z-image" and not re.search(rf"\.0\.{_ATTENTION}$", path):
                continue  # each of its layers takes seconds to score on a CPU
            if everywhere or re.search(rf"\.{_ATTENTION}$|\.linear1$", path):
                name = "lora_unet_" + path.replace(".", "_")
                layer = seeded_layer(name, shape, rank, seed)
                kohya |= layer
                native |= as_native(path, layer, name)
        if checkpoint.stem == "qwen-image":  # named and wide as Flux, which has fewer blocks
            name = "lora_unet_transformer_blocks_59_attn_to_q"
            kohya |= seeded_layer(name, [3072, 3072], rank, seed)
        save_file(kohya, folder / f"{role}-{checkpoint.stem}.safetensors")
        save_file(native, folder / f"{role}-{checkpoint.stem}-native.safetensors")
        save_file(split(native), folder / f"{role}-{checkpoint.stem}-split.safetensors")


def _layers(checkpoint: Path) -> Iterator[tuple[str, list[int]]]:
    klein = checkpoint.stem.startswith("klein")
    with safe_open(str(checkpoint), "pt") as opened:
        for key in opened.keys():  # noqa: SIM118 - not a dict
            if not key.startswith(_DENOISER):
                continue
            path = key.removeprefix(_DENOISER)
            found = _LAYER.fullmatch(path) or (klein and _OF_KLEIN.fullmatch(path))
            if found:
                yield found[1], opened.get_slice(key).get_shape()


def as_native(path: str, layer: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The same layer under the model's own name; the scale is multiplied in, for want of an alpha."""
    down, up = layer[f"{name}.lora_down.weight"], layer[f"{name}.lora_up.weight"]
    scale = float(layer[f"{name}.alpha"]) / down.shape[0]
    stem = f"diffusion_model.{path}"
    return {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": (up * scale).contiguous()}


def split(native: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same layers as diffusers has Z-Image's: q, k and v apart, each with the whole down."""
    result: dict[str, Tensor] = {}
    for key, tensor in native.items():
        stem, _, way = key.partition(".lora_")
        if stem.endswith(".attention.qkv"):
            pieces = tensor.chunk(3) if way == "B.weight" else (tensor, tensor, tensor)
            for letter, piece in zip("qkv", pieces, strict=True):
                result[f"{stem.removesuffix('qkv')}to_{letter}.lora_{way}"] = piece.clone()
        else:
            result[key.replace(".attention.out.", ".attention.to_out.0.")] = tensor
    return result
