"""Stable Diffusion 2.0 and 2.1: SD1's UNet with the text of OpenCLIP."""

from klora.files.models.model import BaseModel
from klora.files.models.unet import level_widths, unet

MODEL = BaseModel(
    "SD2",
    unet((1, 1, 1, 0), 1, (0, 1, 1, 1), has_label=False),
    level_widths((320, 640, 1280, 1280), 1024),
    words=("sd_v2", "sd_2", "stable-diffusion-v2", "sd2", "sd 2"),
    attributes=("is_sd2",),
    configurations=("SD20", "SD21UnclipL", "SD21UnclipH"),
    hosts=("A1111", "Forge", "reForge", "diffusers"),
    diffusers_prefix="unet.",
    kohya_is_native=False,
    text_encoders={"text_encoder": "lora_te_"},
)
