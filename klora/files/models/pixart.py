"""PixArt Alpha and Sigma."""

from klora.files.models.model import BaseModel, Block, attention, fused, linear

_BLOCK = (
    fused("attn1.to_qkv", "attn.qkv", tuple((f"attn1.to_{one}", 1) for one in "qkv"), attention=True),
    *(attention(f"attn1.to_{one}") for one in "qkv"),
    attention("attn1.to_out.0", "attn.proj"),
    attention("attn2.to_q", "cross_attn.q_linear"),
    fused("attn2.to_kv", "cross_attn.kv_linear", (("attn2.to_k", 1), ("attn2.to_v", 1)), attention=True),
    *(attention(f"attn2.to_{one}") for one in "kv"),
    attention("attn2.to_out.0", "cross_attn.proj"),
    linear("ff.net.0.proj", "mlp.fc1", 4, 1),
    linear("ff.net.2", "mlp.fc2", 1, 4),
)
_EMBEDDERS = (("timestep", "t_embedder"), ("resolution", "csize_embedder"), ("aspect_ratio", "ar_embedder"))
_TIME = tuple(
    linear(f"adaln_single.emb.{name}_embedder.linear_{number}", f"{native}.mlp.{2 * number - 2}")
    for name, native in _EMBEDDERS
    for number in (1, 2)
)
_TEXT = (
    linear("caption_projection.linear_1", "y_embedder.y_proj.fc1"),
    linear("caption_projection.linear_2", "y_embedder.y_proj.fc2"),
)

MODEL = BaseModel(
    "PixArt",
    (
        Block("", "", (linear("pos_embed.proj", "x_embedder.proj"),), embeds=True),
        Block("", "", (*_TIME, linear("adaln_single.linear", "t_block.1"), *_TEXT), embeds=True),
        Block("transformer_blocks.#", "blocks.#", _BLOCK, 28),
        Block("", "", (linear("proj_out", "final_layer.linear"),)),
    ),
    {"transformer": (1152,)},
    words=("pixart",),
    yields_to=("SD3",),
    configurations=("PixArtAlpha", "PixArtSigma"),
)
