"""Seeded LoRA files for a Flux checkpoint, read off its header, in kohya's dialect and in three others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from klora.files.conversion import convert
from tests.hosts.make_loras import ROLES, seeded_layer

_DOUBLE = r"double_blocks\.\d+\.(?:img|txt)_(?:attn\.(?:qkv|proj)|mlp\.[02])"
_LAYER = re.compile(rf"(?:model\.diffusion_model\.)?({_DOUBLE}|single_blocks\.\d+\.linear[12])\.weight")

#: The projections of the double blocks' attention, all that a file of xlabs' holds, as xlabs calls them.
_XLABS = {
    "img_attn_qkv": "processor.qkv_lora1",
    "img_attn_proj": "processor.proj_lora1",
    "txt_attn_qkv": "processor.qkv_lora2",
    "txt_attn_proj": "processor.proj_lora2",
}


def make_flux_loras(checkpoint: Path, folder: Path) -> None:
    """Write ``content-flux`` and ``style-flux`` (kohya, fused), ``-split`` (diffusers), and of the double
    blocks' attention alone ``-double`` (kohya), ``-xlabs`` and ``-bare`` (native names without a prefix)."""
    for role in ("content", "style"):
        rank, _, seed = ROLES[role]
        whole: dict[str, Tensor] = {}
        with safe_open(str(checkpoint), "pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - not a dict
                if found := _LAYER.fullmatch(key):
                    name = "lora_unet_" + found[1].replace(".", "_")
                    whole.update(seeded_layer(name, opened.get_slice(key).get_shape(), rank, seed))
        double = {key: one for key, one in whole.items() if "_double_" in key and "_attn_" in key}
        save_file(whole, folder / f"{role}-flux.safetensors")
        save_file(double, folder / f"{role}-flux-double.safetensors")
        save_file(_renamed(double, _as_xlabs), folder / f"{role}-flux-xlabs.safetensors")
        save_file(_renamed(double, _as_bare), folder / f"{role}-flux-bare.safetensors")
        convert(folder / f"{role}-flux.safetensors", folder / f"{role}-flux-split.safetensors", "diffusers")


def _renamed(tensors: Mapping[str, Tensor], spelled: Callable[[str, str], str]) -> dict[str, Tensor]:
    """The same layers under other names; the scale is multiplied in, for want of an alpha."""
    renamed = {}
    for key, alpha in tensors.items():
        if key.endswith(".alpha"):
            stem = key.removesuffix(".alpha")
            down, up = tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"]
            for way, tensor in (("down", down), ("up", up * (float(alpha) / down.shape[0]))):
                renamed[spelled(stem, way)] = tensor.contiguous()
    return renamed


def _as_xlabs(stem: str, way: str) -> str:
    number, leaf = _place(stem)
    return f"double_blocks.{number}.{_XLABS[leaf]}.{way}.weight"


def _as_bare(stem: str, way: str) -> str:
    number, leaf = _place(stem)
    letter = {"down": "A", "up": "B"}[way]
    return f"double_blocks.{number}.{leaf.replace('_attn_', '_attn.')}.lora_{letter}.weight"


def _place(stem: str) -> tuple[str, str]:
    """Block number and the rest of a kohya name: ``0``, ``img_attn_qkv``."""
    number, _, leaf = stem.removeprefix("lora_unet_double_blocks_").partition("_")
    return number, leaf
