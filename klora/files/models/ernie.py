"""ERNIE-Image."""

from klora.files.models.model import BaseModel, Block, attention, linear

_LAYER = (
    *(attention(f"self_attention.{one}", f"self_attention.{one}") for one in ("to_q", "to_k", "to_v")),
    *(linear(f"self_attention.{one}", f"self_attention.{one}") for one in ("norm_q", "norm_k")),
    attention("self_attention.to_out.0", "self_attention.to_out.0"),
    linear("mlp.up_proj", "mlp.up_proj"),
    linear("mlp.gate_proj", "mlp.gate_proj"),
    linear("mlp.linear_fc2", "mlp.linear_fc2"),
)
_BEFORE = ("x_embedder.proj", "text_proj", "time_embedding.linear_1", "time_embedding.linear_2")

MODEL = BaseModel(
    "ERNIE-Image",
    (
        Block("", "", tuple(linear(name, name) for name in _BEFORE), embeds=True),
        Block("", "", (linear("adaLN_modulation.1", "adaLN_modulation.1"),)),
        Block("layers.#", "layers.#", _LAYER, 36),
        Block("", "", tuple(linear(name, name) for name in ("final_norm.linear", "final_linear"))),
    ),
    {"transformer": (4096,)},
    words=("ernie",),
    configurations=("ErnieImage",),
)
