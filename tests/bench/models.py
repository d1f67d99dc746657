"""LoRA files as large as those of real models, with seeded random weights, for the benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from klora.files import is_attention, ldm_name

Shapes = Mapping[str, tuple[int, ...]]

#: Architecture of SDXL's UNet, as published in its config.json.
_SDXL: Mapping[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}

#: The same of SD1's, where it is not what diffusers takes by itself.
_SD1: Mapping[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}

#: Flux: blocks of two streams, blocks of one, width.
_DOUBLE, _SINGLE, _WIDTH = 19, 38, 3072


def sdxl_shapes() -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of the weight, of every linear and convolution; diffusers tells them."""
    return _shapes(_SDXL)


def sd1_shapes() -> dict[str, tuple[int, ...]]:
    """The same of SD1's UNet."""
    return _shapes(_SD1)


def _shapes(architecture: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**architecture)
    wanted = (torch.nn.Linear, torch.nn.Conv2d)
    return {name: tuple(one.weight.shape) for name, one in unet.named_modules() if isinstance(one, wanted)}


def sdxl() -> dict[str, tuple[int, ...]]:
    """kohya's name -> shape, of every linear and convolution of SDXL's UNet."""
    return {_kohya(name): shape for name, shape in sdxl_shapes().items()}


def sdxl_attention() -> dict[str, tuple[int, ...]]:
    """kohya's name -> shape, of the 560 linears of SDXL's attentions."""
    return {_kohya(name): shape for name, shape in sdxl_shapes().items() if is_attention(name)}


def _kohya(name: str) -> str:
    return "lora_unet_" + str(ldm_name(name, "SDXL")).replace(".", "_")


def flux() -> dict[str, tuple[int, ...]]:
    """kohya's name -> shape, of every linear of Flux's 19 + 38 blocks; q, k and v are one."""
    wide = 4 * _WIDTH
    shapes = {}
    for block in range(_DOUBLE):
        for stream in ("img", "txt"):
            stem = f"lora_unet_double_blocks_{block}_{stream}_"
            shapes[stem + "attn_qkv"] = (3 * _WIDTH, _WIDTH)
            shapes[stem + "attn_proj"] = (_WIDTH, _WIDTH)
            shapes[stem + "mlp_0"] = (wide, _WIDTH)
            shapes[stem + "mlp_2"] = (_WIDTH, wide)
    for block in range(_SINGLE):
        shapes[f"lora_unet_single_blocks_{block}_linear1"] = (3 * _WIDTH + wide, _WIDTH)
        shapes[f"lora_unet_single_blocks_{block}_linear2"] = (_WIDTH, _WIDTH + wide)
    return shapes


def write_lora(path: Path, shapes: Shapes, rank: int, seed: int) -> Path:
    """A file of random fp16 factors, alpha half the rank."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for stem, (out, inside, *kernel) in shapes.items():
        ones = [1] * len(kernel)
        down = torch.randn(rank, inside, *kernel, generator=generator)
        tensors[f"{stem}.lora_down.weight"] = down.half() / 8
        tensors[f"{stem}.lora_up.weight"] = torch.randn(out, rank, *ones, generator=generator).half() / 8
        tensors[f"{stem}.alpha"] = torch.tensor(rank / 2).half()
    save_file(tensors, path)
    return path
