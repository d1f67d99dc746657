"""Stable Diffusion 1.4 and 1.5."""

from klora.files.models.model import BaseModel
from klora.files.models.unet import level_widths, unet

MODEL = BaseModel(
    "SD1",
    unet((1, 1, 1, 0), 1, (0, 1, 1, 1), has_label=False),
    level_widths((320, 640, 1280, 1280), 768),
    words=("sd_v1", "sd_1", "stable-diffusion-v1", "sd1", "sd 1"),
    attributes=("is_sd1",),
    configurations=("SD15", "SD15_instructpix2pix"),
    hosts=("A1111", "Forge", "Neo", "reForge", "diffusers"),
    diffusers_prefix="unet.",
    kohya_is_native=False,
    text_encoders={"text_encoder": "lora_te_"},
)
