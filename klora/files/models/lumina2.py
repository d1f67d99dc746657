"""Lumina Image 2.0, and Neta Lumina. Keys and values have a third of the queries' heads."""

from dataclasses import replace

from klora.files.models.model import BaseModel, Block, attention, fused, linear

_PARTS = (("attn.to_q", 3), ("attn.to_k", 1), ("attn.to_v", 1))
_THIRD = 1 / 3
_MODULATION = (linear("norm1.linear", "adaLN_modulation.1"),)
_LAYER = (
    replace(fused("attn.to_qkv", "attention.qkv", _PARTS, attention=True), out=5 / 3),
    attention("attn.to_q", None),
    *(attention(f"attn.to_{one}", None, _THIRD, 1) for one in "kv"),
    linear("attn.norm_q", "attention.q_norm"),
    linear("attn.norm_k", "attention.k_norm"),
    attention("attn.to_out.0", "attention.out"),
    *(linear(f"feed_forward.linear_{number}", f"feed_forward.w{number}") for number in (1, 3, 2)),
)
_BEFORE = (
    linear("time_caption_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
    linear("time_caption_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
    linear("time_caption_embed.caption_embedder.1", "cap_embedder.1"),
)

MODEL = BaseModel(
    "Lumina 2",
    (
        Block("", "", _BEFORE, embeds=True),
        Block("context_refiner.#", "context_refiner.#", _LAYER, 2),
        Block("", "", (linear("x_embedder", "x_embedder"),), embeds=True),
        Block("noise_refiner.#", "noise_refiner.#", (*_MODULATION, *_LAYER), 2),
        Block("layers.#", "layers.#", (*_MODULATION, *_LAYER), 26),
        Block(
            "",
            "",
            (
                linear("norm_out.linear_1", "final_layer.adaLN_modulation.1"),
                linear("norm_out.linear_2", "final_layer.linear"),
            ),
        ),
    ),
    {"transformer": (2304,)},
    words=("lumina2", "lumina-2", "lumina_2", "lumina-image-2", "neta-lumina", "netalumina"),
    configurations=("Lumina2",),
    hosts=("Neo",),
)
