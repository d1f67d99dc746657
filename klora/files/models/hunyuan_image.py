"""HunyuanImage 2.1: HunyuanVideo's blocks in another width."""

from klora.files.models.hunyuan_video import blocks
from klora.files.models.model import BaseModel, linear

_BEFORE = (
    linear("time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer", None, None, "time_in.mlp.0"),
    linear(
        "time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer", None, None, "time_in.mlp.2"
    ),
    linear("x_embedder.proj", "img_in.proj"),
)

MODEL = BaseModel(
    "HunyuanImage",
    blocks(_BEFORE),
    {"transformer": (3584,)},
    words=("hunyuanimage", "hunyuan_image", "hunyuan-image"),
    yields_to=("Flux", "HunyuanVideo"),
)
