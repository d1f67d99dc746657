"""Qwen-Image and Qwen-Image-Edit: one row of blocks with two streams, under the same names everywhere."""

from klora.files.models.model import BaseModel, Block, attention, linear

_BLOCK = (
    linear("img_mod.1", "img_mod.1", 6, 1),
    linear("txt_mod.1", "txt_mod.1", 6, 1),
    *(attention(f"attn.{one}", f"attn.{one}") for one in ("to_q", "to_k", "to_v")),
    *(attention(f"attn.{one}", f"attn.{one}") for one in ("add_q_proj", "add_k_proj", "add_v_proj")),
    *(linear(f"attn.{one}", f"attn.{one}") for one in ("norm_q", "norm_k", "norm_added_q", "norm_added_k")),
    *(attention(f"attn.{one}", f"attn.{one}") for one in ("to_out.0", "to_add_out")),
    linear("img_mlp.net.0.proj", "img_mlp.net.0.proj", 4, 1),
    linear("img_mlp.net.2", "img_mlp.net.2", 1, 4),
    linear("txt_mlp.net.0.proj", "txt_mlp.net.0.proj", 4, 1),
    linear("txt_mlp.net.2", "txt_mlp.net.2", 1, 4),
)
_BEFORE = (
    "img_in",
    "txt_norm",
    "txt_in",
    "time_text_embed.timestep_embedder.linear_1",
    "time_text_embed.timestep_embedder.linear_2",
)

MODEL = BaseModel(
    "Qwen-Image",
    (
        Block("", "", tuple(linear(name, name) for name in _BEFORE), embeds=True),
        Block("transformer_blocks.#", "transformer_blocks.#", _BLOCK, 60),
        Block("", "", tuple(linear(name, name) for name in ("norm_out.linear", "proj_out"))),
    ),
    {"transformer": (3072,)},
    words=("qwen-image", "qwen_image", "qwen image", "qwenimage"),
    yields_to=("Flux",),
    configurations=("QwenImage",),
    hosts=("Neo",),
)
