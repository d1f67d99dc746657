"""Anima: Cosmos Predict 2 with an adapter of a language model's text."""

from klora.files.models.model import BaseModel, Block, Leaf, attention, linear

_ATTENTION = (("to_q", "q_proj"), ("to_k", "k_proj"), ("to_v", "v_proj"))


def _modulation(number: int, part: str) -> tuple[Leaf, ...]:
    native = f"adaln_modulation_{part}"
    return tuple(linear(f"norm{number}.linear_{one}", f"{native}.{one}") for one in (1, 2))


_BLOCK = (
    *_modulation(1, "self_attn"),
    *(attention(f"attn1.{name}", f"self_attn.{native}") for name, native in _ATTENTION),
    linear("attn1.norm_q", "self_attn.q_norm"),
    linear("attn1.norm_k", "self_attn.k_norm"),
    attention("attn1.to_out.0", "self_attn.output_proj"),
    *_modulation(2, "cross_attn"),
    attention("attn2.to_q", "cross_attn.q_proj"),
    *(attention(f"attn2.to_{one}", f"cross_attn.{one}_proj", 1, "text") for one in "kv"),
    linear("attn2.norm_q", "cross_attn.q_norm"),
    linear("attn2.norm_k", "cross_attn.k_norm"),
    attention("attn2.to_out.0", "cross_attn.output_proj"),
    *_modulation(3, "mlp"),
    linear("ff.net.0.proj", "mlp.layer1", 4, 1),
    linear("ff.net.2", "mlp.layer2", 1, 4),
)
_ADAPTER = (
    *(
        attention(f"{part}.{one}", f"{part}.{one}", None, None)
        for part in ("self_attn", "cross_attn")
        for one in ("q_proj", "k_proj", "v_proj", "o_proj")
    ),
    linear("mlp.0", "mlp.0"),
    linear("mlp.2", "mlp.2"),
)
_BEFORE = (
    linear("patch_embed.proj", "x_embedder.proj.1"),
    linear("time_embed.t_embedder.linear_1", "t_embedder.1.linear_1"),
    linear("time_embed.t_embedder.linear_2", "t_embedder.1.linear_2"),
    linear("time_embed.norm", "t_embedding_norm"),
)
_AFTER = (
    linear("norm_out.linear_1", "final_layer.adaln_modulation.1"),
    linear("norm_out.linear_2", "final_layer.adaln_modulation.2"),
    linear("proj_out", "final_layer.linear"),
)

MODEL = BaseModel(
    "Anima",
    (
        Block("llm_adapter.blocks.#", "llm_adapter.blocks.#", _ADAPTER, 6),
        Block("", "", _BEFORE, embeds=True),
        Block("transformer_blocks.#", "blocks.#", _BLOCK, 28),
        Block("", "", _AFTER),
    ),
    {"transformer": (2048,), "text": (1024,)},
    words=("anima",),
    yields_to=("SD3",),
    configurations=("Anima",),
)
