"""The base models: one file each. A new model is a file here and a line in `FILES`."""

from __future__ import annotations

from importlib import import_module

from klora.files.models.model import BaseModel, Block, Layer, Leaf

#: The files, in the order in which models are asked whether they know a name.
FILES = (
    "sd1",
    "sd2",
    "sdxl",
    "flux",
    "sd3",
    "chroma",
    "flux2",
    "flux2_klein_4b",
    "flux2_klein_9b",
    "qwen_image",
    "qwen_image21",
    "z_image",
    "lumina2",
    "wan",
    "hunyuan_video",
    "hunyuan_image",
    "hidream",
    "pixart",
    "auraflow",
    "kolors",
    "cascade",
    "anima",
    "ernie",
    "krea2",
)

MODELS: tuple[BaseModel, ...] = tuple(import_module(f"{__name__}.{one}").MODEL for one in FILES)
BY_NAME = {model.name: model for model in MODELS}

__all__ = ["BY_NAME", "FILES", "MODELS", "BaseModel", "Block", "Layer", "Leaf"]
