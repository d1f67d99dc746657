"""Z-Image, base and Turbo: Lumina 2's design with as many keys as queries."""

from klora.files.models.model import BaseModel, Block, attention, fused, linear

_QKV = tuple((f"attention.to_{one}", 1) for one in "qkv")
_MODULATION = (linear("adaLN_modulation.0", "adaLN_modulation.0"),)
_LAYER = (
    fused("attention.to_qkv", "attention.qkv", _QKV, attention=True),
    *(attention(f"attention.to_{one}") for one in "qkv"),
    linear("attention.norm_q", "attention.q_norm"),
    linear("attention.norm_k", "attention.k_norm"),
    attention("attention.to_out.0", "attention.out"),
    *(linear(f"feed_forward.w{number}", f"feed_forward.w{number}") for number in (1, 3, 2)),
)
_ENDS = "all_final_layer.2-1"

MODEL = BaseModel(
    "Z-Image",
    (
        Block(
            "",
            "",
            tuple(linear(f"t_embedder.mlp.{one}", f"t_embedder.mlp.{one}") for one in (0, 2)),
            embeds=True,
        ),
        Block("", "", (linear("all_x_embedder.2-1", "x_embedder"),), embeds=True),
        Block("noise_refiner.#", "noise_refiner.#", (*_MODULATION, *_LAYER), 2),
        Block("", "", (linear("cap_embedder.1", "cap_embedder.1"),), embeds=True),
        Block("context_refiner.#", "context_refiner.#", _LAYER, 2),
        Block("layers.#", "layers.#", (*_MODULATION, *_LAYER), 30),
        Block(
            "",
            "",
            (
                linear(f"{_ENDS}.adaLN_modulation.1", "final_layer.adaLN_modulation.1"),
                linear(f"{_ENDS}.linear", "final_layer.linear"),
            ),
        ),
    ),
    {"transformer": (3840,)},
    words=("z-image", "z_image", "zimage", "z image"),
    configurations=("ZImage",),
    hosts=("Neo",),
)
