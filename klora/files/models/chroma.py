"""Chroma: Flux.1 without modulation in its blocks, and with an approximator in its place."""

from klora.files.models.flux import AFTER, BEFORE, DOUBLE, SINGLE
from klora.files.models.model import BaseModel, Block, linear, without

_APPROXIMATOR = "distilled_guidance_layer"
_NOT_HERE = ("norm1.linear", "norm1_context.linear", "norm.linear")
_LAYER = (
    linear("norms.#", "norms.#"),
    linear("layers.#.linear_1", "layers.#.in_layer"),
    linear("layers.#.linear_2", "layers.#.out_layer"),
)

MODEL = BaseModel(
    "Chroma",
    (
        Block(_APPROXIMATOR, _APPROXIMATOR, (linear("in_proj", "in_proj"),)),
        Block(_APPROXIMATOR, _APPROXIMATOR, _LAYER),
        Block(_APPROXIMATOR, _APPROXIMATOR, (linear("out_proj", "out_proj"),)),
        Block(
            "",
            "",
            tuple(leaf for leaf in BEFORE if leaf.name in ("x_embedder", "context_embedder")),
            embeds=True,
        ),
        Block("transformer_blocks.#", "double_blocks.#", without(DOUBLE, *_NOT_HERE), 19),
        Block("single_transformer_blocks.#", "single_blocks.#", without(SINGLE, *_NOT_HERE), 38),
        # Of Chroma Radiance, which draws pixels.
        Block("nerf_blocks.#", "nerf_blocks.#", (linear("param_generator", "param_generator"),)),
        Block("", "", tuple(leaf for leaf in AFTER if leaf.name == "proj_out")),
    ),
    {"transformer": (3072,)},
    words=("chroma",),
    marks=(
        *(f"{_APPROXIMATOR}.{leaf.name}" for leaf in (linear("in_proj"), *_LAYER, linear("out_proj"))),
        "nerf_blocks.#.param_generator",
    ),
    configurations=("Chroma",),
    also_loads=("Flux",),
    hosts=("Neo",),
    text_encoders={"text_encoder": "lora_te3_", "text_encoder_3": "lora_te3_"},
)
