"""For which base model a file was made: from its tensors first, from its metadata second."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

UNKNOWN = "unknown"

#: Input width of a UNet's ``attn2.to_k`` is that of the text encoder's output.
_TEXT_WIDTHS = {768: "SD1", 1024: "SD2", 2048: "SDXL"}

#: Width of a transformer block; Flux and SD3 share the names of diffusers.
_BLOCK_WIDTHS = {3072: "Flux", 1536: "SD3", 2432: "SD3"}

_FLUX_DOUBLE_BLOCKS = 19
_DOUBLE_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.")

_METADATA_KEYS = ("ss_base_model_version", "modelspec.architecture")
_METADATA_MARKS = (
    ("sdxl", "SDXL"),
    ("stable-diffusion-xl", "SDXL"),
    ("flux", "Flux"),
    ("sd3", "SD3"),
    ("stable-diffusion-v3", "SD3"),
    ("stable-diffusion-3", "SD3"),
    ("sd_v2", "SD2"),
    ("stable-diffusion-v2", "SD2"),
    ("sd_v1", "SD1"),
    ("sd_1", "SD1"),
    ("stable-diffusion-v1", "SD1"),
)

_DEEP_TRANSFORMER = re.compile(r".+\.attentions\.\d+\.transformer_blocks\.[1-9]\d*\..+")


def base_model(
    keys: Iterable[str], shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]
) -> str:
    """``SD1``, ``SD2``, ``SDXL``, ``SD3``, ``Flux`` or ``unknown``.

    ``keys`` are the file's own, whose native block names tell Flux from SD3; ``shapes`` are those of dW by
    canonical name.
    """
    said = [metadata.get(key, "").lower() for key in _METADATA_KEYS]
    return _from_names(keys, shapes) or _from_widths(shapes, said) or _from_metadata(said) or UNKNOWN


def _from_names(keys: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    if any("joint_blocks" in key for key in keys):
        return "SD3"
    if any(name.startswith("single_transformer_blocks.") for name in shapes):
        return "Flux"
    if any("double_blocks" in key for key in keys):
        return "Flux"
    return (
        "SD3"
        if any(".attn2." in name and name.startswith("transformer_blocks.") for name in shapes)
        else None
    )


def _from_widths(shapes: Mapping[str, tuple[int, ...]], said: Sequence[str]) -> str | None:
    for name, shape in shapes.items():
        if name.endswith((".attn2.to_k", ".attn2.to_v")) and shape[1] in _TEXT_WIDTHS:
            return _TEXT_WIDTHS[shape[1]]
    for name, shape in shapes.items():
        if name.endswith((".attn.to_q", ".attn.to_qkv", ".attn.to_out.0")) and shape[1] in _BLOCK_WIDTHS:
            model = _BLOCK_WIDTHS[shape[1]]
            # Qwen-Image has Flux's names and width, but many more blocks; a file for few of them may tell.
            is_qwen = _deepest(shapes) >= _FLUX_DOUBLE_BLOCKS or any("qwen" in one for one in said)
            return None if model == "Flux" and is_qwen else model
    # Only SDXL stacks transformer blocks; only it has a second text embedding.
    deep = any(_DEEP_TRANSFORMER.fullmatch(name) or name.startswith("add_embedding.") for name in shapes)
    return "SDXL" if deep else None


def _deepest(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Highest number of a double block, counted from 0; -1 if there is none."""
    found = (_DOUBLE_BLOCK.match(name) for name in shapes)
    return max((int(match[1]) for match in found if match), default=-1)


def _from_metadata(said: Sequence[str]) -> str | None:
    for one in said:
        for mark, model in _METADATA_MARKS:
            if mark in one:
                return model
    return None
