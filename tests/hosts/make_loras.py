"""Seeded LoRA files in kohya's dialect that fit a checkpoint, read off its header. No text-encoder part."""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

ALPHA = 4.0

#: Role -> (rank, whether layers outside attention are touched too, seed).
ROLES = {"content": (8, True, 11), "style": (4, True, 22), "third": (8, False, 33)}

_ATTENTION = r"attn[12]\.to_(?:q|k|v|out\.0)"
_LAYER = re.compile(
    rf"model\.diffusion_model\.(.*?(?:{_ATTENTION}|ff\.net\.0\.proj|ff\.net\.2|\d\.proj_in|\d\.proj_out))\.weight"
)


def make_loras(checkpoint: Path, folder: Path) -> None:
    """Write ``content-NAME``, ``style-NAME`` and ``third-NAME`` for the checkpoint NAME."""
    for role, (rank, everywhere, seed) in ROLES.items():
        tensors: dict[str, torch.Tensor] = {}
        with safe_open(str(checkpoint), "pt") as opened:
            is_sdxl = any(key.startswith("conditioner.") for key in opened.keys())  # noqa: SIM118 - not a dict
            for key in opened.keys():  # noqa: SIM118
                found = _LAYER.fullmatch(key)
                if found and (everywhere or ".attn" in key):
                    name = kohya_name(found[1], is_sdxl)
                    tensors.update(seeded_layer(name, opened.get_slice(key).get_shape(), rank, seed))
        save_file(
            tensors, str(folder / f"{role}-{checkpoint.stem}.safetensors"), {"ss_network_dim": str(rank)}
        )


def kohya_name(path: str, is_sdxl: bool) -> str:
    """kohya keeps LDM's block names for SDXL and takes diffusers' for SD1."""
    if not is_sdxl:
        path = re.sub(r"input_blocks\.(\d+)\.1", lambda m: _block("down", int(m[1]) - 1), path)
        path = re.sub(r"output_blocks\.(\d+)\.1", lambda m: _block("up", int(m[1])), path)
        path = path.replace("middle_block.1", "mid_block.attentions.0")
    return "lora_unet_" + path.replace(".", "_")


def _block(side: str, number: int) -> str:
    return f"{side}_blocks.{number // 3}.attentions.{number % 3}"


def seeded_layer(name: str, shape: list[int], rank: int, seed: int) -> dict[str, torch.Tensor]:
    """Strong enough to change pixels; the strength is drawn per layer, so the stronger LoRA varies."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
    strength = 0.25 * 4 ** float(torch.rand(1, generator=generator))
    down = torch.randn(rank, shape[1], generator=generator) / math.sqrt(shape[1])
    up = torch.randn(shape[0], rank, generator=generator) * strength * math.sqrt(rank) / ALPHA
    if len(shape) == 4:
        down, up = down[..., None, None], up[..., None, None]
    return {
        f"{name}.lora_down.weight": down.half().contiguous(),
        f"{name}.lora_up.weight": up.half().contiguous(),
        f"{name}.alpha": torch.tensor(ALPHA).half(),
    }
