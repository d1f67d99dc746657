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
    "qwen_image",
)

MODELS: tuple[BaseModel, ...] = tuple(import_module(f"{__name__}.{one}").MODEL for one in FILES)
BY_NAME = {model.name: model for model in MODELS}

__all__ = ["BY_NAME", "FILES", "MODELS", "BaseModel", "Block", "Layer", "Leaf"]
