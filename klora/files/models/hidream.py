"""HiDream I1 and E1: blocks whose feed-forward is a mixture of experts."""

from klora.files.models.model import BaseModel, Block, Leaf, attention, linear


def _same(*names: str) -> tuple[Leaf, ...]:
    return tuple(linear(name, name) for name in names)


def _attention(*names: str) -> tuple[Leaf, ...]:
    return tuple(attention(f"attn1.{name}", f"attn1.{name}") for name in names)


def _gated(name: str) -> tuple[Leaf, ...]:
    return _same(*(f"{name}.w{number}" for number in (1, 3, 2)))


_EXPERTS = (*_gated("ff_i.shared_experts"), *_same("ff_i.gate"), *_gated("ff_i.experts.#"))
_MODULATION = _same("adaLN_modulation.1")
_DOUBLE = (
    *_MODULATION,
    *_attention("to_q"),
    *_same("attn1.q_rms_norm"),
    *_attention("to_k"),
    *_same("attn1.k_rms_norm"),
    *_attention("to_v", "to_q_t"),
    *_same("attn1.q_rms_norm_t"),
    *_attention("to_k_t"),
    *_same("attn1.k_rms_norm_t"),
    *_attention("to_v_t", "to_out", "to_out_t"),
    *_EXPERTS,
    *_gated("ff_i"),
    *_gated("ff_t"),
)
_SINGLE = (
    *_MODULATION,
    *_attention("to_q"),
    *_same("attn1.q_rms_norm"),
    *_attention("to_k"),
    *_same("attn1.k_rms_norm"),
    *_attention("to_v", "to_out"),
    *_EXPERTS,
    *_gated("ff_i"),
)
_BEFORE = (
    *_same("t_embedder.timestep_embedder.linear_1", "t_embedder.timestep_embedder.linear_2"),
    *_same("p_embedder.pooled_embedder.linear_1", "p_embedder.pooled_embedder.linear_2"),
    *_same("x_embedder.proj", "caption_projection.#.linear"),
)

MODEL = BaseModel(
    "HiDream",
    (
        Block("", "", _BEFORE, embeds=True),
        Block("double_stream_blocks.#.block", "double_stream_blocks.#.block", _DOUBLE, 16),
        Block("single_stream_blocks.#.block", "single_stream_blocks.#.block", _SINGLE, 32),
        Block("", "", _same("final_layer.adaLN_modulation.1", "final_layer.linear")),
    ),
    {"transformer": (2560,)},
    words=("hidream", "hi-dream"),
    configurations=("HiDream",),
)
