"""One LoRA written in every dialect, from literal names: the ground truth for renaming.

The names are spelled out, not derived, so that they share no code with what they test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

#: canonical name -> (SDXL name of kohya's scripts, output width, input width), in forward order
SDXL = {
    "down_blocks.1.attentions.0.proj_in": ("input_blocks_4_1_proj_in", 10, 10),
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (
        "input_blocks_4_1_transformer_blocks_0_attn1_to_q", 10, 10,
    ),
    "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k": (
        "input_blocks_4_1_transformer_blocks_1_attn2_to_k", 10, 2048,
    ),
    "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj": (
        "input_blocks_8_1_transformer_blocks_9_ff_net_0_proj", 160, 20,
    ),
    "mid_block.attentions.0.transformer_blocks.3.attn1.to_out.0": (
        "middle_block_1_transformer_blocks_3_attn1_to_out_0", 20, 20,
    ),
    "up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_v": (
        "output_blocks_2_1_transformer_blocks_0_attn2_to_v", 20, 2048,
    ),
    "up_blocks.1.attentions.0.transformer_blocks.1.ff.net.2": (
        "output_blocks_3_1_transformer_blocks_1_ff_net_2", 10, 40,
    ),
}  # fmt: skip

#: canonical name -> (output width, input width) of SD1
SD1 = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (8, 8),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0": (8, 8),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (8, 768),
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0": (16, 16),
    "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_v": (8, 768),
}

#: module of the original Flux -> (canonical parts, their rows, input width), for a hidden width of 6
FLUX = {
    "double_blocks.0.img_attn.qkv": (
        [f"transformer_blocks.0.attn.to_{one}" for one in "qkv"], [6, 6, 6], 6,
    ),
    "double_blocks.0.img_attn.proj": (["transformer_blocks.0.attn.to_out.0"], [6], 6),
    "double_blocks.0.txt_attn.qkv": (
        [f"transformer_blocks.0.attn.add_{one}_proj" for one in "qkv"], [6, 6, 6], 6,
    ),
    "double_blocks.0.txt_attn.proj": (["transformer_blocks.0.attn.to_add_out"], [6], 6),
    "double_blocks.0.img_mlp.0": (["transformer_blocks.0.ff.net.0.proj"], [24], 6),
    "double_blocks.0.txt_mlp.2": (["transformer_blocks.0.ff_context.net.2"], [6], 24),
    "double_blocks.0.img_mod.lin": (["transformer_blocks.0.norm1.linear"], [36], 6),
    "single_blocks.7.linear1": (
        [
            *(f"single_transformer_blocks.7.attn.to_{one}" for one in "qkv"),
            "single_transformer_blocks.7.proj_mlp",
        ],
        [6, 6, 6, 24], 6,
    ),
    "single_blocks.7.linear2": (["single_transformer_blocks.7.proj_out"], [6], 30),
    "single_blocks.7.modulation.lin": (["single_transformer_blocks.7.norm.linear"], [18], 6),
}  # fmt: skip

#: the same for SD3
SD3 = {
    "joint_blocks.2.x_block.attn.qkv": (
        [f"transformer_blocks.2.attn.to_{one}" for one in "qkv"], [8, 8, 8], 8,
    ),
    "joint_blocks.2.context_block.attn.qkv": (
        [f"transformer_blocks.2.attn.add_{one}_proj" for one in "qkv"], [8, 8, 8], 8,
    ),
    "joint_blocks.2.x_block.attn.proj": (["transformer_blocks.2.attn.to_out.0"], [8], 8),
    "joint_blocks.2.x_block.attn2.qkv": (
        [f"transformer_blocks.2.attn2.to_{one}" for one in "qkv"], [8, 8, 8], 8,
    ),
    "joint_blocks.2.x_block.mlp.fc1": (["transformer_blocks.2.ff.net.0.proj"], [32], 8),
    "joint_blocks.2.context_block.mlp.fc2": (["transformer_blocks.2.ff_context.net.2"], [8], 32),
}  # fmt: skip

XLABS = {
    "double_blocks.0.processor.qkv_lora1": FLUX["double_blocks.0.img_attn.qkv"],
    "double_blocks.0.processor.proj_lora1": FLUX["double_blocks.0.img_attn.proj"],
    "double_blocks.0.processor.qkv_lora2": FLUX["double_blocks.0.txt_attn.qkv"],
    "double_blocks.0.processor.proj_lora2": FLUX["double_blocks.0.txt_attn.proj"],
    "single_blocks.7.processor.qkv_lora": (
        [f"single_transformer_blocks.7.attn.to_{one}" for one in "qkv"], [6, 6, 6], 6,
    ),
    "single_blocks.7.processor.proj_lora": FLUX["single_blocks.7.linear2"],
}  # fmt: skip

RANK, ALPHA = 3, 1.5
SCALE = ALPHA / RANK

Pair = tuple[Tensor, Tensor]


def pairs(widths: Mapping[str, tuple[int, int]], seed: int = 0) -> dict[str, Pair]:
    """(down, up) per layer; the same for the same seed and widths."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(RANK, inside, generator=generator), torch.randn(out, RANK, generator=generator))
        for name, (out, inside) in widths.items()
    }


def deltas(of: Mapping[str, Pair], scale: float = SCALE) -> dict[str, Tensor]:
    """The true dW in fp64."""
    return {name: scale * (up.double() @ down.double()) for name, (down, up) in of.items()}


def write(path: Path, of: Mapping[str, Pair], spell: Callable[[str], tuple[str, str, str | None]]) -> Path:
    """Write the pairs; ``spell`` gives the keys of down, up and alpha. Without alpha its scale is in
    ``up``."""
    tensors = {}
    for name, (down, up) in of.items():
        down_key, up_key, alpha_key = spell(name)
        tensors[down_key] = down
        tensors[up_key] = up if alpha_key else up * SCALE
        if alpha_key:
            tensors[alpha_key] = torch.tensor(ALPHA)
    save_file(tensors, path)
    return path


def kohya(stem: Callable[[str], str]) -> Callable[[str], tuple[str, str, str | None]]:
    return lambda name: (
        f"{stem(name)}.lora_down.weight",
        f"{stem(name)}.lora_up.weight",
        f"{stem(name)}.alpha",
    )


def peft(stem: Callable[[str], str], adapter: str = "") -> Callable[[str], tuple[str, str, str | None]]:
    return lambda name: (f"{stem(name)}.lora_A{adapter}.weight", f"{stem(name)}.lora_B{adapter}.weight", None)


def lora_dot(stem: Callable[[str], str], word: str = "lora") -> Callable[[str], tuple[str, str, str | None]]:
    return lambda name: (f"{stem(name)}.{word}.down.weight", f"{stem(name)}.{word}.up.weight", None)


def processor(name: str) -> tuple[str, str, str | None]:
    stem, _, leaf = name.removesuffix(".0").rpartition(".")
    return (
        f"unet.{stem}.processor.{leaf}_lora.down.weight",
        f"unet.{stem}.processor.{leaf}_lora.up.weight",
        None,
    )


def flat(name: str) -> str:
    return name.replace(".", "_")


UNET_DIALECTS = {
    "kohya": kohya(lambda name: "lora_unet_" + flat(name)),
    "lycoris": kohya(lambda name: "lycoris_" + flat(name)),
    "diffusers-attention-processors": processor,
    "diffusers": lora_dot(lambda name: "unet." + name),
    "diffusers authors": lora_dot(lambda name: "unet.unet." + name),
    "diffusers linear layer": lora_dot(lambda name: "unet." + name, "lora_linear_layer"),
    "peft": peft(lambda name: "unet." + name),
    "peft-base-model": peft(lambda name: "base_model.model." + name),
    "peft-base-model unet": peft(lambda name: "base_model.model.unet." + name),
    "peft-base-model adapter": peft(lambda name: "base_model.model." + name, ".default"),
    "peft adapter": peft(lambda name: "unet." + name, ".my-style_2"),
    "peft onetrainer": kohya(lambda name: "unet." + name),
    "bare-unet": peft(lambda name: name),
}

FLUX_SPLIT_DIALECTS = {
    "diffusers-transformer": peft(lambda name: "transformer." + name),
    "diffusers-transformer onetrainer": kohya(lambda name: "transformer." + name),
    "bare-transformer": peft(lambda name: name),
    "onetrainer": kohya(lambda name: "lora_transformer_" + flat(name)),
    "lycoris": kohya(lambda name: "lycoris_" + flat(name)),
    "peft-base-model": peft(lambda name: "base_model.model." + name),
}

NATIVE_DIALECTS = {
    "kohya": kohya(lambda name: "lora_unet_" + flat(name)),
    "generic": peft(lambda name: "diffusion_model." + name),
    "generic kohya parameters": kohya(lambda name: "diffusion_model." + name),
    "bfl-peft": peft(lambda name: "base_model.model." + name),
    "bare-native": peft(lambda name: name),
}
