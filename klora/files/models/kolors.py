"""Kolors: SDXL's UNet behind a projection of ChatGLM's text. A file without that projection is SDXL's."""

from klora.files.models.model import BaseModel, Block, linear
from klora.files.models.unet import level_widths, unet

MODEL = BaseModel(
    "Kolors",
    (
        Block("", "", (linear("encoder_hid_proj", "encoder_hid_proj"),), embeds=True),
        *unet((0, 2, 10), 10, (10, 2, 0), has_label=True),
    ),
    level_widths((320, 640, 1280), 2048),
    words=("kolors",),
    marks=("encoder_hid_proj",),
    diffusers_prefix="unet.",
)
