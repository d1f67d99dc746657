"""Krea 2: one row of blocks with gated attention; keys and values have a quarter of the queries' heads."""

from klora.files.models.model import BaseModel, Block, Leaf, attention, linear


def _block(share: float) -> tuple[Leaf, ...]:
    """A block whose keys and values are ``share`` of the queries."""
    return (
        attention("attn.to_q", "attn.wq"),
        attention("attn.to_k", "attn.wk", share, 1),
        attention("attn.to_v", "attn.wv", share, 1),
        linear("attn.to_gate", "attn.gate", 1, 1),
        linear("attn.norm_q", "attn.qknorm.qnorm"),
        linear("attn.norm_k", "attn.qknorm.knorm"),
        attention("attn.to_out.0", "attn.wo"),
        linear("ff.gate", "mlp.gate"),
        linear("ff.up", "mlp.up"),
        linear("ff.down", "mlp.down"),
    )


_TEXT_BLOCK = _block(1)
_IN = (linear("txt_in.linear_1", "txtmlp.1"), linear("txt_in.linear_2", "txtmlp.3"))
_TIME = (
    linear("time_embed.linear_1", "tmlp.0"),
    linear("time_embed.linear_2", "tmlp.2"),
    linear("time_mod_proj", "tproj.1"),
)

MODEL = BaseModel(
    "Krea 2",
    (
        Block("", "", _TIME, embeds=True),
        Block("text_fusion.layerwise_blocks.#", "txtfusion.layerwise_blocks.#", _TEXT_BLOCK, 2, "text"),
        Block("", "", (linear("text_fusion.projector", "txtfusion.projector"),)),
        Block("text_fusion.refiner_blocks.#", "txtfusion.refiner_blocks.#", _TEXT_BLOCK, 2, "text"),
        Block("", "", (*_IN, linear("img_in", "first")), embeds=True),
        Block("transformer_blocks.#", "blocks.#", _block(0.25), 28),
        Block("", "", (linear("final_layer.linear", "last.linear"),)),
    ),
    {"transformer": (6144,), "text": (2560,)},
    words=("krea2", "krea-2", "krea_2", "krea 2"),
    yields_to=("Flux",),
    configurations=("Krea2",),
)
