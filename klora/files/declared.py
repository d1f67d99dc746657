"""Scales that a file declares outside its tensors: PEFT keeps alpha, r and rsLoRA in a configuration.

diffusers puts that configuration into the safetensors header (``lora_adapter_metadata``), PEFT into
``adapter_config.json`` beside ``adapter_model.safetensors``. No WebUI reads either, but the LoRA was trained
so.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

from klora.files.defects import defect_error

HEADER_KEY = "lora_adapter_metadata"
_CONFIG_LIMIT = 2**20
_PREFIXES = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
_REMEDY = "export the LoRA again, or convert it without that configuration"

Config = Mapping[str, object]


def declared_configs(path: Path, metadata: Mapping[str, str]) -> Mapping[str, Config]:
    """Component (``unet``, ``text_encoder``, ... or "" for the file's only model) -> its configuration.

    Raises `LoraFileError` if there is a configuration that cannot be read.
    """
    if HEADER_KEY in metadata:
        packed = _loaded(metadata[HEADER_KEY], path.name)
        return {prefix: config for prefix in _PREFIXES if (config := _unpacked(packed, prefix))}
    beside = path.with_name("adapter_config.json")
    if path.name == "adapter_model.safetensors" and beside.is_file():
        with beside.open("rb") as stream:
            return {"": _loaded(stream.read(_CONFIG_LIMIT).decode("utf-8", "replace"), path.name)}
    return {}


def _loaded(text: str, file: str) -> Config:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise defect_error(file, "its adapter configuration is not sound JSON", _REMEDY) from error
    if not isinstance(config, dict):
        raise defect_error(file, "its adapter configuration is not a JSON object", _REMEDY)
    return config


def _unpacked(packed: Config, prefix: str) -> Config:
    return {key[len(prefix) + 1 :]: value for key, value in packed.items() if key.startswith(prefix + ".")}


def declared_scale(config: Config, layer: str, rank: int | None, file: str) -> float | None:
    """alpha / r, or alpha / sqrt(r) for rsLoRA, of one layer; ``None`` if the configuration has no alpha.

    ``rank`` is that of the tensors, which is preferred to the configuration's. Raises `LoraFileError` for an
    alpha that is no number.
    """
    general = config.get("lora_alpha", config.get("alpha"))
    alpha = _for_layer(config.get("alpha_pattern"), layer, general)
    r = rank if rank is not None else _for_layer(config.get("rank_pattern"), layer, config.get("r"))
    if alpha is None or r is None:
        return None
    if not _is_number(alpha) or not _is_number(r) or float(r) <= 0:
        raise defect_error(file, "its adapter configuration has an alpha or rank that is no number", _REMEDY)
    return float(alpha) / (math.sqrt(float(r)) if config.get("use_rslora") is True else float(r))


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _for_layer(patterns: object, layer: str, general: object) -> object:
    """PEFT's rule: a pattern holds for a layer whose name ends with it. Only literal ones are followed."""
    if isinstance(patterns, dict):
        for pattern, value in patterns.items():
            literal = pattern.replace("\\", "").lstrip("^").rstrip("$")
            if re.fullmatch(rf"(?:.*\.)?{re.escape(literal)}", layer):
                return value
    return general
