"""Wan 2.1 and 2.2: 14B (in 2.2 a pair of models, for high and for low noise), 5B and 1.3B."""

from klora.files.models.model import BaseModel, Block, attention, linear

_SHORT = (("to_q", "q"), ("to_k", "k"), ("to_v", "v"))
_BLOCK = (
    *(attention(f"attn1.{name}", f"self_attn.{native}") for name, native in _SHORT),
    linear("attn1.norm_q", "self_attn.norm_q"),
    linear("attn1.norm_k", "self_attn.norm_k"),
    attention("attn1.to_out.0", "self_attn.o"),
    linear("norm2", "norm3"),
    *(attention(f"attn2.{name}", f"cross_attn.{native}") for name, native in _SHORT),
    linear("attn2.norm_q", "cross_attn.norm_q"),
    linear("attn2.norm_k", "cross_attn.norm_k"),
    # Of the first picture, in the models that start from one.
    attention("attn2.add_k_proj", "cross_attn.k_img"),
    attention("attn2.add_v_proj", "cross_attn.v_img"),
    linear("attn2.norm_added_k", "cross_attn.norm_k_img"),
    attention("attn2.to_out.0", "cross_attn.o"),
    linear("ffn.net.0.proj", "ffn.0"),
    linear("ffn.net.2", "ffn.2"),
)
_BEFORE, _AFTER = linear("proj_in", "before_proj"), linear("proj_out", "after_proj")
_CONDITION = (
    linear("time_embedder.linear_1", "time_embedding.0"),
    linear("time_embedder.linear_2", "time_embedding.2"),
    linear("time_proj", "time_projection.1"),
    linear("text_embedder.linear_1", "text_embedding.0"),
    linear("text_embedder.linear_2", "text_embedding.2"),
    linear("image_embedder.norm1", "img_emb.proj.0"),
    linear("image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    linear("image_embedder.ff.net.2", "img_emb.proj.3"),
    linear("image_embedder.norm2", "img_emb.proj.4"),
)

MODEL = BaseModel(
    "Wan",
    (
        Block("", "", (linear("patch_embedding", "patch_embedding"),), embeds=True),
        Block("condition_embedder", "", _CONDITION, embeds=True),
        # Of VACE: what the control pictures add, before the blocks that it is added to.
        Block("vace_blocks.#", "vace_blocks.#", (_BEFORE, *_BLOCK, _AFTER), 8),
        Block("blocks.#", "blocks.#", _BLOCK, 40),
        Block("", "", (linear("proj_out", "head.head"),)),
    ),
    {"transformer": (5120, 3072, 1536)},
    words=("wan2", "wan-2", "wan_2", "wan 2", "wan21", "wan22", "wan2.1", "wan2.2"),
    variants=(
        ("high noise", ("high_noise", "high-noise", "highnoise")),
        ("low noise", ("low_noise", "low-noise", "lownoise")),
    ),
    configurations=("WAN21_T2V", "WAN21_I2V", "WAN21_FunControl2V", "WAN21_Camera", "WAN21_Vace"),
    hosts=("Neo",),
)
