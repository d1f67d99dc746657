"""HunyuanVideo: Flux.1's blocks in another number, behind a refiner of the text's tokens."""

from klora.files.models.flux import ADDED_QKV, AFTER, QKV
from klora.files.models.model import BaseModel, Block, Leaf, attention, fused, linear

#: The original repository's names stand beside those of ComfyUI, which trainers write as well.
DOUBLE: tuple[Leaf, ...] = (
    linear("norm1.linear", "img_mod.lin", 6, 1, "img_mod.linear"),
    linear("norm1_context.linear", "txt_mod.lin", 6, 1, "txt_mod.linear"),
    fused("attn.to_qkv", "img_attn.qkv", QKV, "img_attn_qkv", attention=True),
    # HunyuanImage's own code, and kohya's scripts for it, have them apart.
    *(attention(f"attn.to_{one}", None, 1, 1, f"img_attn_{one}") for one in "qkv"),
    fused("attn.to_added_qkv", "txt_attn.qkv", ADDED_QKV, "txt_attn_qkv", attention=True),
    *(attention(f"attn.add_{one}_proj", None, 1, 1, f"txt_attn_{one}") for one in "qkv"),
    linear("attn.norm_q", "img_attn.norm.query_norm", None, None, "img_attn_q_norm"),
    linear("attn.norm_k", "img_attn.norm.key_norm", None, None, "img_attn_k_norm"),
    linear("attn.norm_added_q", "txt_attn.norm.query_norm", None, None, "txt_attn_q_norm"),
    linear("attn.norm_added_k", "txt_attn.norm.key_norm", None, None, "txt_attn_k_norm"),
    attention("attn.to_out.0", "img_attn.proj", 1, 1, "img_attn_proj"),
    attention("attn.to_add_out", "txt_attn.proj", 1, 1, "txt_attn_proj"),
    linear("ff.net.0.proj", "img_mlp.0", 4, 1, "img_mlp.fc1"),
    linear("ff.net.2", "img_mlp.2", 1, 4, "img_mlp.fc2"),
    linear("ff_context.net.0.proj", "txt_mlp.0", 4, 1, "txt_mlp.fc1"),
    linear("ff_context.net.2", "txt_mlp.2", 1, 4, "txt_mlp.fc2"),
)
SINGLE: tuple[Leaf, ...] = (
    linear("norm.linear", "modulation.lin", 3, 1, "modulation.linear"),
    fused("to_qkv_mlp", "linear1", (*QKV, ("proj_mlp", 4))),
    linear("proj_mlp", None, 4, 1, "linear1_mlp"),
    *(attention(f"attn.to_{one}", None, 1, 1, f"linear1_{one}") for one in "qkv"),
    linear("attn.norm_q", "norm.query_norm", None, None, "q_norm"),
    linear("attn.norm_k", "norm.key_norm", None, None, "k_norm"),
    linear("proj_out", "linear2", 1, 5, "linear2.fc", "linear2.linear"),
)
_REFINER = (
    fused("attn.to_qkv", "self_attn.qkv", QKV, "self_attn_qkv", attention=True),
    *(attention(f"attn.to_{one}") for one in "qkv"),
    attention("attn.to_out.0", "self_attn.proj", 1, 1, "self_attn_proj"),
    linear("ff.net.0.proj", "mlp.0", 4, 1, "mlp.fc1"),
    linear("ff.net.2", "mlp.2", 1, 4, "mlp.fc2"),
    linear("norm_out.linear", "adaLN_modulation.1", 2, 1),
)
_TEXT = (
    linear("time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
    linear("time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
    linear("time_text_embed.text_embedder.linear_1", "c_embedder.linear_1"),
    linear("time_text_embed.text_embedder.linear_2", "c_embedder.linear_2"),
    linear("proj_in", "input_embedder"),
)
_BEFORE = (
    linear("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer", None, None, "time_in.mlp.0"),
    linear("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer", None, None, "time_in.mlp.2"),
    linear(
        "time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer", None, None, "guidance_in.mlp.0"
    ),
    linear(
        "time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer", None, None, "guidance_in.mlp.2"
    ),
    linear("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
    linear("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    linear("x_embedder.proj", "img_in.proj"),
)


def blocks(before: tuple[Leaf, ...]) -> tuple[Block, ...]:
    """The blocks behind what is called ``before`` them."""
    refiner = ("context_embedder.token_refiner.refiner_blocks.#", "txt_in.individual_token_refiner.blocks.#")
    return (
        Block("", "", before, embeds=True),
        Block("context_embedder", "txt_in", _TEXT, embeds=True),
        Block(*refiner, _REFINER, 2),
        Block("transformer_blocks.#", "double_blocks.#", DOUBLE, 20),
        Block("single_transformer_blocks.#", "single_blocks.#", SINGLE, 40),
        Block("", "", AFTER),
    )


MODEL = BaseModel(
    "HunyuanVideo",
    blocks(_BEFORE),
    {"transformer": (3072,)},
    words=("hunyuan_video", "hunyuanvideo", "hunyuan-video", "framepack"),
    yields_to=("Flux",),
    configurations=("HunyuanVideo", "HunyuanVideoI2V", "HunyuanVideoSkyreelsI2V"),
)
