"""Stable Diffusion XL, with Pony, Illustrious and NoobAI (v-prediction as well): the same UNet."""

from klora.files.models.model import BaseModel
from klora.files.models.unet import level_widths, unet

MODEL = BaseModel(
    "SDXL",
    unet((0, 2, 10), 10, (10, 2, 0), has_label=True),
    level_widths((320, 640, 1280), 2048),
    words=("sdxl", "stable-diffusion-xl", "pony", "illustrious", "noobai"),
    attributes=("is_sdxl",),
    configurations=(
        "SDXL",
        "SSD1B",
        "Segmind_Vega",
        "KOALA_700M",
        "KOALA_1B",
        "SDXL_instructpix2pix",
        "Mugen",
        "SDXL_flux2",
    ),
    variants=(
        ("Pony", ("pony",)),
        ("Illustrious", ("illustrious",)),
        ("NoobAI", ("noobai", "noob-ai", "noob_ai")),
    ),
    hosts=("A1111", "Forge", "Neo", "reForge", "diffusers"),
    diffusers_prefix="unet.",
    text_encoders={"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
)
