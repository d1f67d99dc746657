"""Flux.2 dev: the blocks share their modulation, and the MLP is gated and fused with q, k and v."""

from dataclasses import replace

from klora.files.models.flux import ADDED_QKV, QKV
from klora.files.models.model import BaseModel, Block, attention, fused, linear, swapped

_DOUBLE = (
    fused("attn.to_qkv", "img_attn.qkv", QKV, attention=True),
    *(attention(f"attn.to_{one}") for one in "qkv"),
    fused("attn.to_added_qkv", "txt_attn.qkv", ADDED_QKV, attention=True),
    *(attention(f"attn.add_{one}_proj") for one in "qkv"),
    linear("attn.norm_q", "img_attn.norm.query_norm"),
    linear("attn.norm_k", "img_attn.norm.key_norm"),
    linear("attn.norm_added_q", "txt_attn.norm.query_norm"),
    linear("attn.norm_added_k", "txt_attn.norm.key_norm"),
    attention("attn.to_out.0", "img_attn.proj"),
    attention("attn.to_add_out", "txt_attn.proj"),
    linear("ff.linear_in", "img_mlp.0", 6, 1),
    linear("ff.linear_out", "img_mlp.2", 1, 3),
    linear("ff_context.linear_in", "txt_mlp.0", 6, 1),
    linear("ff_context.linear_out", "txt_mlp.2", 1, 3),
)
_SINGLE = (
    replace(fused("attn.to_qkv_mlp_proj", "linear1", (*QKV, ("attn.mlp_in", 6))), fused_in_diffusers=True),
    *(attention(f"attn.to_{one}") for one in "qkv"),
    linear("attn.mlp_in", None, 6, 1),
    linear("attn.norm_q", "norm.query_norm"),
    linear("attn.norm_k", "norm.key_norm"),
    # Not an attention's output alone: three quarters of its inputs are the MLP's.
    linear("attn.to_out", "linear2", 1, 4),
)
_MODULATION = (
    linear("time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    linear("time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    linear("time_guidance_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    linear("time_guidance_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
    linear("double_stream_modulation_img.linear", "double_stream_modulation_img.lin", 6, 1),
    linear("double_stream_modulation_txt.linear", "double_stream_modulation_txt.lin", 6, 1),
    linear("single_stream_modulation.linear", "single_stream_modulation.lin", 3, 1),
)


def blocks(double: int, single: int) -> tuple[Block, ...]:
    """The blocks of a Flux.2 with so many of each kind."""
    return (
        Block("", "", _MODULATION),
        Block("", "", (linear("x_embedder", "img_in"), linear("context_embedder", "txt_in")), embeds=True),
        Block("transformer_blocks.#", "double_blocks.#", _DOUBLE, double),
        Block("single_transformer_blocks.#", "single_blocks.#", _SINGLE, single),
        Block(
            "",
            "",
            (
                linear("norm_out.linear"),
                swapped("norm_out.shift_and_scale", "final_layer.adaLN_modulation.1", "norm_out.linear"),
                linear("proj_out", "final_layer.linear"),
            ),
        ),
    )


MODEL = BaseModel(
    "Flux.2",
    blocks(8, 48),
    {"transformer": (6144,)},
    words=("flux2", "flux-2", "flux.2", "flux_2"),
    yields_to=("Flux",),
)
