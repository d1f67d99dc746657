"""Blocks of layers against the names of the original code, which carry the numbers."""

from __future__ import annotations

import re

import pytest

from klora.files import ldm_name
from klora.files.blocks import LayerBlock, block_of_layer
from klora.files.models import BY_NAME

_ORIGINAL = re.compile(r"(input|output|double|single|joint|transformer)_blocks\.(\d+)\..+|(middle_block)\..+")
_KINDS = {"input": "in", "output": "out", "joint": "double", "transformer": "double"}


def names_of(model: str) -> list[str]:
    """All layers, each ``#`` of their patterns replaced by two numbers."""
    patterns = [layer.pattern for layer in BY_NAME[model].layers()]
    return [pattern.replace("#", str(number)) for pattern in patterns for number in (0, 1)]


@pytest.mark.parametrize("model", ["SD1", "SD2", "SDXL", "Flux", "SD3"])
def test_every_layer_has_the_number_of_the_original_code(model: str) -> None:
    compared = 0
    for name in names_of(model):
        original = ldm_name(name, model)
        match = None if original is None else _ORIGINAL.fullmatch(original)
        if match is None:
            continue
        compared += 1
        kind = "mid" if match[3] else _KINDS.get(match[1], match[1])
        assert block_of_layer(name) == LayerBlock(kind, int(match[2] or 0)), name
    assert compared > 20


@pytest.mark.parametrize(
    ("layer", "block"),
    [
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "in4"),
        ("down_blocks.0.downsamplers.0.conv", "in3"),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_v", "mid"),
        ("up_blocks.1.attentions.0.proj_in", "out3"),
        ("up_blocks.0.upsamplers.0.conv", "out2"),
        ("transformer_blocks.5.attn.to_q", "double5"),
        ("single_transformer_blocks.10.attn.to_q", "single10"),
        ("diffusion_model.layers.12.attention.qkv", "block12"),
        ("diffusion_model.blocks.3.self_attn.q", "block3"),
    ],
)
def test_names_as_users_know_them(layer: str, block: str) -> None:
    assert str(block_of_layer(layer)) == block


@pytest.mark.parametrize("layer", ["time_embedding.linear_1", "conv_out", "context_embedder", "x_embedder"])
def test_layers_outside_all_blocks(layer: str) -> None:
    assert block_of_layer(layer) is None
