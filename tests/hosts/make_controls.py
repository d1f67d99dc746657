"""A ControlNet, a T2I-Adapter, an IP-Adapter and an image encoder of random numbers for a WebUI.

All but the encoder fit a checkpoint of SD1's layout, read off its header. What is zero in a ControlNet
before its training is drawn too, so that it has an effect.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from klora.files.writing import write_with
from tests.hosts.drawn import drawn

_UNET = "model.diffusion_model."

#: Channels of the convolutions that take a picture down to the size of its latent; the last has the UNet's.
_HINT = (3, 16, 16, 32, 32, 96, 96, 256)

#: OpenAI's CLIP ViT-L/14, image part: by its 24 layers a WebUI knows it, and then wants all of these sizes.
_WIDTH, _LAYERS, _INNER, _PATCH, _PATCHES, EMBEDDING = 1024, 24, 4096, 14, 256, 768

#: How many tokens an IP-Adapter makes of a picture.
_TOKENS = 4

Shapes = dict[str, tuple[int, ...]]


def make_controlnet(checkpoint: Path, file: Path) -> None:
    """Write a ControlNet for the checkpoint."""
    unet = _unet(checkpoint)
    shapes = {
        name: shape
        for name, shape in unet.items()
        if name.startswith(("time_embed.", "input_blocks.", "middle_block."))
    }
    channels = unet["input_blocks.0.0.weight"][0]
    for number, (before, after) in enumerate(zip(_HINT, (*_HINT[1:], channels), strict=True)):
        shapes.update(_layer(f"input_hint_block.{2 * number}", after, before, 3, 3))
    blocks = 1 + max(int(found[1]) for name in shapes if (found := re.match(r"input_blocks\.(\d+)\.", name)))
    for number in range(blocks):
        width = _width(unet, f"input_blocks.{number}.0")
        shapes.update(_layer(f"zero_convs.{number}.0", width, width, 1, 1))
    width = _width(unet, "middle_block.0")
    shapes.update(_layer("middle_block_out.0", width, width, 1, 1))
    _save(shapes, file)


def make_t2i_adapter(checkpoint: Path, file: Path) -> None:
    """Write a T2I-Adapter of the plain kind for the checkpoint, whose channels must be SD1's multiples."""
    first = _unet(checkpoint)["input_blocks.0.0.weight"][0]
    shapes = _layer("conv_in", first, 3 * 8 * 8, 3, 3)  # a picture in blocks of 8 pixels
    before = first
    for number in range(8):  # two blocks at each size
        width = first * (1, 2, 4, 4)[number // 2]
        block = f"body.{number}"
        if width != before:
            shapes.update(_layer(f"{block}.in_conv", width, before, 1, 1))
        shapes.update(_layer(f"{block}.block1", width, width, 3, 3))
        shapes.update(_layer(f"{block}.block2", width, width, 1, 1))
        before = width
    _save(shapes, file)


def make_ip_adapter(checkpoint: Path, file: Path) -> None:
    """Write an IP-Adapter for the checkpoint and the image encoder below."""
    unet = _unet(checkpoint)
    keys = [name for name in unet if name.endswith("attn2.to_k.weight")]
    width = unet[keys[0]][1]
    shapes: Shapes = {
        **_layer("image_proj.proj", _TOKENS * width, EMBEDDING),
        **_layer("image_proj.norm", width),
    }
    for number, key in enumerate(sorted(keys, key=_place)):
        for role in "kv":
            shapes[f"ip_adapter.{2 * number + 1}.to_{role}_ip.weight"] = unet[key]
    _save(shapes, file)


def make_image_encoder(file: Path) -> None:
    """Write an encoder of pictures; WebUIs know none smaller: 300 million numbers, of a byte each."""
    top = "vision_model."
    shapes: Shapes = {
        f"{top}embeddings.class_embedding": (_WIDTH,),
        f"{top}embeddings.patch_embedding.weight": (_WIDTH, 3, _PATCH, _PATCH),
        f"{top}embeddings.position_embedding.weight": (_PATCHES + 1, _WIDTH),
        **_layer(f"{top}pre_layrnorm", _WIDTH),  # so it is spelt
        **_layer(f"{top}post_layernorm", _WIDTH),
        "visual_projection.weight": (EMBEDDING, _WIDTH),
    }
    for number in range(_LAYERS):
        layer = f"{top}encoder.layers.{number}."
        for role in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes.update(_layer(f"{layer}self_attn.{role}", _WIDTH, _WIDTH))
        for norm in ("layer_norm1", "layer_norm2"):
            shapes.update(_layer(f"{layer}{norm}", _WIDTH))
        shapes.update(_layer(f"{layer}mlp.fc1", _INNER, _WIDTH))
        shapes.update(_layer(f"{layer}mlp.fc2", _WIDTH, _INNER))
    _save(shapes, file, torch.float8_e4m3fn)


def _unet(checkpoint: Path) -> Shapes:
    with safe_open(str(checkpoint), "pt") as opened:
        names = [name for name in opened.keys() if name.startswith(_UNET)]  # noqa: SIM118 - not a dict
        return {name.removeprefix(_UNET): tuple(opened.get_slice(name).get_shape()) for name in names}


def _width(unet: Shapes, block: str) -> int:
    """The channels that a block gives: a convolution, a residual block or one that halves the size."""
    ends = ("weight", "out_layers.3.weight", "op.weight")
    return next(unet[name][0] for end in ends if (name := f"{block}.{end}") in unet)


def _place(name: str) -> tuple[int, int]:
    """Where an IP-Adapter has a layer: those on the way down, those on the way up, the middle."""
    part, number, *_ = name.split(".")
    return ("input_blocks", "output_blocks", "middle_block").index(part), int(number)


def _layer(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _save(shapes: Shapes, file: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write drawn numbers."""
    tensors: dict[str, Tensor] = {
        name: drawn(name, torch.empty(shape, device="meta"), seed=5).to(dtype)
        for name, shape in shapes.items()
    }
    write_with(file, lambda draft: save_file(tensors, draft))
