"""AuraFlow, and Pony v7, which is made of it."""

from klora.files.models.model import BaseModel, Block, Leaf, attention, linear


def _mlp(name: str, native: str) -> tuple[Leaf, ...]:
    return (
        linear(f"{name}.linear_1", f"{native}.c_fc1"),
        linear(f"{name}.linear_2", f"{native}.c_fc2"),
        linear(f"{name}.out_projection", f"{native}.c_proj"),
    )


_JOINT = (
    linear("norm1.linear", "modX.1", 6, 1),
    linear("norm1_context.linear", "modC.1", 6, 1),
    *(attention(f"attn.to_{one}", f"attn.w2{one}") for one in "qkv"),
    *(attention(f"attn.add_{one}_proj", f"attn.w1{one}") for one in "qkv"),
    attention("attn.to_out.0", "attn.w2o"),
    attention("attn.to_add_out", "attn.w1o"),
    *_mlp("ff", "mlpX"),
    *_mlp("ff_context", "mlpC"),
)
_SINGLE = (
    linear("norm1.linear", "modCX.1", 6, 1),
    *(attention(f"attn.to_{one}", f"attn.w1{one}") for one in "qkv"),
    attention("attn.to_out.0", "attn.w1o"),
    *_mlp("ff", "mlp"),
)
_BEFORE = (
    linear("pos_embed.proj", "init_x_linear"),
    linear("time_step_proj.linear_1", "t_embedder.mlp.0"),
    linear("time_step_proj.linear_2", "t_embedder.mlp.2"),
    linear("context_embedder", "cond_seq_linear"),
)

MODEL = BaseModel(
    "AuraFlow",
    (
        Block("", "", _BEFORE, embeds=True),
        Block("joint_transformer_blocks.#", "double_layers.#", _JOINT, 4),
        Block("single_transformer_blocks.#", "single_layers.#", _SINGLE, 32),
        Block("", "", (linear("norm_out.linear", "modF.1"), linear("proj_out", "final_linear"))),
    ),
    {"transformer": (3072,)},
    words=("auraflow", "aura_flow", "aura-flow", "pony-v7", "pony_v7"),
    yields_to=("Flux",),
    configurations=("AuraFlow",),
)
