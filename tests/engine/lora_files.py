"""Small LoRA files for the command line."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

BLOCK = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_"
ATTENTION = (BLOCK + "attn1_to_q", BLOCK + "attn1_to_k", BLOCK + "attn2_to_q")
FEED_FORWARD = BLOCK + "ff_net_2"


def write_lora(
    path: Path,
    layers: tuple[str, ...] = ATTENTION,
    *,
    rank: int = 2,
    alpha: float | None = None,
    size: tuple[int, int] = (12, 12),
    seed: int = 0,
    bad: float | None = None,
) -> Path:
    """A LoRA of kohya's naming; ``bad`` replaces one number of the last layer."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in layers:
        tensors[f"{layer}.lora_up.weight"] = torch.randn(size[0], rank, generator=generator)
        width = 4 * size[1] if layer == FEED_FORWARD else size[1]
        tensors[f"{layer}.lora_down.weight"] = torch.randn(rank, width, generator=generator)
        if alpha is not None:
            tensors[f"{layer}.alpha"] = torch.tensor(alpha)
    if bad is not None:
        tensors[f"{layers[-1]}.lora_up.weight"][0, 0] = bad
    save_file(tensors, path)
    return path
