"""Qwen-Image 2.1: one stream, one attention, a gated feed-forward."""

from klora.files.models.model import BaseModel, Block, attention, linear

_BLOCK = (
    *(attention(f"attn.{one}", f"attn.{one}") for one in ("to_q", "to_k", "to_v")),
    *(linear(f"attn.{one}", f"attn.{one}") for one in ("norm_q", "norm_k")),
    attention("attn.to_out.0", "attn.to_out.0"),
    linear("img_mlp.gate_layer", "img_mlp.gate_layer", 3, 1),
    linear("img_mlp.proj", "img_mlp.proj", 3, 1),
    linear("img_mlp.out", "img_mlp.out", 1, 3),
)
_BEFORE = (
    "img_in",
    "txt_in.text_norm",
    "txt_in.in_layer",
    "txt_in.out_layer",
    "time_text_embed.timestep_embedder.linear_1",
    "time_text_embed.timestep_embedder.linear_2",
    "modulation.1",
)

MODEL = BaseModel(
    "Qwen-Image 2.1",
    (
        Block("", "", tuple(linear(name, name) for name in _BEFORE)),
        Block("transformer_blocks.#", "transformer_blocks.#", _BLOCK, 32),
        Block("", "", tuple(linear(name, name) for name in ("norm_out.linear", "proj_out"))),
    ),
    {"transformer": (4096,)},
    words=("qwen-image-2.1", "qwen_image_21", "qwen-image-21", "qwen_image_2.1", "qwen image 2.1"),
    yields_to=("Flux", "Qwen-Image"),
    configurations=("QwenImage21",),
)
