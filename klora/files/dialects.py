"""The dialects in which LoRA files name their layers: an ordered list of (name, detect, place).

A file is of the first dialect that detects itself in its keys, and all its layers are placed by that one: in
a component of the model, at a path, which `klora.files.recognition` then looks up in the base models' tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from klora.files.base_model import Path
from klora.files.models.text_encoders import GRAMMAR as TEXT_ENCODERS
from klora.files.native import canonical_name

#: Component whose layers take part in the comparison; all others are left to the host.
DENOISER = "denoiser"

Place = tuple[str, Path]


@dataclass(frozen=True)
class Dialect:
    """One way to name layers. ``place`` takes the layer as the file names it, without the parameter."""

    name: str
    detect: Callable[[Sequence[str]], bool]
    place: Callable[[str], Place | None]


# --- Placing --------------------------------------------------------------------------------------

_FLAT_COMPONENTS = (
    ("lora_unet_", DENOISER),
    ("lora_transformer_", DENOISER),
    ("lora_prior_unet_", DENOISER),
    ("lora_prior_te_", "text_encoder"),
    ("lycoris_", DENOISER),
    ("lora_te_", "text_encoder"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te3_", "text_encoder_3"),
    ("lora_te", "another_text_encoder"),
)
_DOTTED_COMPONENTS = (
    ("unet.", DENOISER),
    ("transformer.", DENOISER),
    ("transformer_2.", DENOISER),
    ("pipe.dit.", DENOISER),
    ("dit.", DENOISER),
    ("model.diffusion_model.", DENOISER),
    ("diffusion_model.", DENOISER),
    ("text_encoder.", "text_encoder"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder_3.", "text_encoder_3"),
    ("text_encoders.clip_l.transformer.", "text_encoder"),
    ("text_encoders.clip_g.transformer.", "text_encoder_2"),
    ("text_encoders.t5xxl.transformer.", "text_encoder_3"),
    ("clip_l.", "text_encoder"),
    ("clip_g.", "text_encoder_2"),
    ("t5xxl.", "text_encoder_3"),
    ("t5.", "text_encoder_3"),
    ("text_encoders.", "another_text_encoder"),
    ("text_encoder_4.", "another_text_encoder"),
    ("conditioner.", "another_text_encoder"),
    ("te1.", "text_encoder"),
    ("te2.", "text_encoder_2"),
)


def place_flat(layer: str) -> Place | None:
    """``lora_unet_down_blocks_0_...`` -> (component, path)."""
    for prefix, component in _FLAT_COMPONENTS:
        if layer.startswith(prefix):
            # Some names end in an underscore (ComfyUI#4347); torch.compile and DDP leave words of their own.
            text = layer[len(prefix) :].replace("_orig_mod_", "").removeprefix("module_").rstrip("_")
            of_text = prefix == "lycoris_" and TEXT_ENCODERS.find_flat(text) is not None
            return "text_encoder" if of_text else component, Path(text, flat=True)
    return _place_prefixed(layer)


def _place_prefixed(path: str) -> Place | None:
    for prefix, component in _DOTTED_COMPONENTS:
        if path.startswith(prefix):
            # Twice in files of the K-LoRA authors: "unet.unet.".
            return component, Path(path[len(prefix) :].removeprefix(prefix), flat=False)
    return None


def place_dotted(layer: str) -> Place:
    """``unet.down_blocks.0...``, with any of the wrappers in use or none -> (component, path)."""
    path = layer.replace("_orig_mod.", "").removeprefix("module.").removeprefix("base_model.model.")
    prefixed = _place_prefixed(path)
    if prefixed is None and path.startswith("lora_"):
        prefixed = place_flat(path)  # text encoders in kohya's names beside a denoiser in others
    if prefixed is not None:
        return prefixed
    of_text = canonical_name(path) is None and TEXT_ENCODERS.find(path) is not None
    return "text_encoder" if of_text else DENOISER, Path(path, flat=False)


# --- Detecting ------------------------------------------------------------------------------------


def _any_starts(*prefixes: str) -> Callable[[Sequence[str]], bool]:
    return lambda keys: any(key.startswith(prefixes) for key in keys)


def _any_has(pattern: str) -> Callable[[Sequence[str]], bool]:
    compiled = re.compile(pattern)
    return lambda keys: any(compiled.search(key) for key in keys)


#: Rows of blocks of the newer transformers, under no prefix.
_OTHER_BLOCKS = (
    "blocks.",
    "layers.",
    "joint_transformer_blocks.",
    "double_stream_blocks.",
    "single_stream_blocks.",
    "double_layers.",
    "noise_refiner.",
    "context_refiner.",
)

#: Wrappers around a denoiser, which their trainers left in the names.
_WRAPPERS = ("module.", "_orig_mod.", "transformer_2.", "pipe.dit.", "dit.")
_LDM_BLOCKS = ("lora_unet_input_blocks_", "lora_unet_middle_block_", "lora_unet_output_blocks_")

#: The first that detects itself wins, so the special ones stand before the general ones.
DIALECTS: tuple[Dialect, ...] = (
    Dialect("xlabs", _any_has(r"\.processor\.(?:qkv|proj)_lora[12]?\."), place_dotted),
    Dialect("kohya-sdxl", _any_starts(*_LDM_BLOCKS), place_flat),
    Dialect("kohya-flux", _any_starts("lora_unet_double_blocks_", "lora_unet_single_blocks_"), place_flat),
    Dialect("kohya-sd3", _any_starts("lora_unet_joint_blocks_"), place_flat),
    Dialect("onetrainer", _any_starts("lora_transformer_", "lora_prior_unet_"), place_flat),
    Dialect(
        "kohya", _any_starts("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_te3_"), place_flat
    ),
    Dialect("lycoris", _any_starts("lycoris_"), place_flat),
    Dialect("bfl-peft", _any_has(r"^base_model\.model\.(?:double|single|joint)_blocks\."), place_dotted),
    Dialect("peft-base-model", _any_starts("base_model.model."), place_dotted),
    Dialect("generic", _any_starts("diffusion_model.", "model.diffusion_model."), place_dotted),
    Dialect(
        "diffusers-attention-processors",
        _any_has(r"\.(?:processor\.)?to_\w+_lora\.(?:down|up)"),
        place_dotted,
    ),
    Dialect("diffusers", _any_has(r"\.lora(?:_linear_layer)?\.(?:down|up)\."), place_dotted),
    Dialect("diffusers-transformer", _any_starts("transformer."), place_dotted),
    Dialect("peft", _any_starts("unet.", "text_encoder.", "text_encoder_2."), place_dotted),
    Dialect("bare-native", _any_starts("double_blocks.", "single_blocks.", "joint_blocks."), place_dotted),
    Dialect(
        "bare-transformer", _any_starts("transformer_blocks.", "single_transformer_blocks."), place_dotted
    ),
    Dialect("bare-blocks", _any_starts(*_OTHER_BLOCKS), place_dotted),
    Dialect(
        "bare-unet", _any_starts("down_blocks.", "mid_block.", "up_blocks.", "input_blocks."), place_dotted
    ),
    Dialect("wrapped", _any_starts(*_WRAPPERS), place_dotted),
)
