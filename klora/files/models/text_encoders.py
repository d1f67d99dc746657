"""The text encoders that LoRA files train beside a denoiser: CLIP and T5.

Their layers are no contest: each WebUI applies them by itself. They are known by name so that a file is
understood whole, and can be written in another dialect. All others are left to the host.
"""

from klora.files.models.grammar import Grammar
from klora.files.models.model import BaseModel, Block, linear

_CLIP = (
    *(linear(f"self_attn.{one}_proj") for one in ("q", "k", "v", "out")),
    *(linear(name) for name in ("mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2")),
)
_CLIP_ENDS = (
    *(linear(name) for name in ("embeddings.token_embedding", "embeddings.position_embedding")),
    linear("final_layer_norm"),
)
_T5 = (
    *(linear(f"layer.0.SelfAttention.{one}") for one in "qkvo"),
    *(linear(f"layer.1.DenseReluDense.{one}") for one in ("wi", "wi_0", "wi_1", "wo")),
    *(linear(f"layer.{number}.layer_norm") for number in (0, 1, 2)),
)

GRAMMAR = Grammar(
    BaseModel(
        "CLIP and T5",
        (
            Block("text_model.encoder.layers.#", None, _CLIP),
            Block("encoder.layers.#", None, _CLIP),
            Block("text_model", None, _CLIP_ENDS),
            Block("", None, (*_CLIP_ENDS, linear("text_projection"), linear("shared"))),
            Block("encoder.block.#", None, _T5),
            Block("block.#", None, _T5),
        ),
    )
)
