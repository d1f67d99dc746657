"""Scales that a file declares outside its tensors: PEFT keeps alpha, r and rsLoRA in a configuration.

diffusers puts that configuration into the safetensors header (``lora_adapter_metadata``), PEFT into
``adapter_config.json`` beside ``adapter_model.safetensors``; some trainers write single entries into the
header (``transformer.lora_alpha``). No WebUI reads any of them, but the LoRA was trained so.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

from klora.files.defects import defect_error, shown
from klora.files.patterns import Patterns
from klora.files.sidecars import read_sidecar

HEADER_KEY = "lora_adapter_metadata"
_CONFIG_LIMIT = 2**20
_PREFIXES = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
_REMEDY = "export the LoRA again, or convert it without that configuration"

#: Entries of the header that are an alpha by themselves. kohya's ``ss_network_alpha`` is none: its scripts
#: take a file without alpha for one with alpha = rank.
_FLAT_ALPHAS = ("lora_alpha", "network_alpha", "alpha")

#: Beginnings in PEFT that leave the model's own weight as it is; all others change it.
_PLAIN_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal", "mica", "true", "false")

Config = Mapping[str, object]


def declared_configs(path: Path, metadata: Mapping[str, str]) -> Mapping[str, Config]:
    """Component (``unet``, ``text_encoder``, ... or "" for the file's only model) -> its configuration.

    Raises `LoraFileError` if there is a configuration that cannot be read, or one of a LoRA that is a
    difference from other weights than the checkpoint's.
    """
    configs = _found(path, metadata)
    for config in configs.values():
        _refuse_changed_base(config, path.name)
    return configs


def _found(path: Path, metadata: Mapping[str, str]) -> Mapping[str, Config]:
    if HEADER_KEY in metadata:
        packed = _loaded(metadata[HEADER_KEY], path.name)
        found = {prefix: config for prefix in _PREFIXES if (config := _unpacked(packed, prefix))}
        return found or {"": packed}
    text = _text_beside(path)
    return _flat(metadata) if text is None else {"": _loaded(text, path.name)}


def _text_beside(path: Path) -> str | None:
    """What PEFT's configuration beside a file says, or ``None`` if there is none."""
    if path.name != "adapter_model.safetensors":
        return None
    return read_sidecar(path.with_name("adapter_config.json"), _CONFIG_LIMIT)


def digest_beside(path: str | os.PathLike[str]) -> str:
    """sha256 of PEFT's configuration beside a file, which says how strong its tensors are; "" if none is."""
    text = _text_beside(Path(path))
    return "" if text is None else hashlib.sha256(text.encode()).hexdigest()


def _flat(metadata: Mapping[str, str]) -> Mapping[str, Config]:
    """Single entries of the header, with or without a component before them."""
    found: dict[str, Config] = {}
    for prefix in ("", *_PREFIXES):
        for name in _FLAT_ALPHAS:
            alpha = _number(metadata.get(f"{prefix}.{name}" if prefix else name, ""))
            if alpha is not None:
                found.setdefault(prefix, {"lora_alpha": alpha})
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


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


def _refuse_changed_base(config: Config, file: str) -> None:
    beginning = config.get("init_lora_weights")
    plain = beginning.lower() if isinstance(beginning, str) else beginning
    if plain in _PLAIN_BEGINNINGS or isinstance(plain, list | dict):
        return
    raise defect_error(
        file,
        f"it was trained with init_lora_weights={shown(str(beginning), 40)}, which takes a part out of the "
        "model's own weights, so that it does not fit the plain checkpoint",
        "save it with PEFT's path_initial_model_for_weight_conversion, which makes an ordinary LoRA of it",
    )


def is_declaration(key: str) -> bool:
    """Whether an entry of the header declares a scale; it must not go along with tensors that hold it."""
    prefix, _, name = key.rpartition(".")
    return key == HEADER_KEY or (name in _FLAT_ALPHAS and prefix in ("", *_PREFIXES))


class DeclaredScales:
    """The scales that one configuration declares, layer by layer.

    Raises `LoraFileError` for patterns that are no table, or too many or too intricate to be followed.
    """

    def __init__(self, config: Config, file: str) -> None:
        self._config = config
        self._file = file
        self._alphas = Patterns(config.get("alpha_pattern"), "alpha_pattern", file)
        self._ranks = Patterns(config.get("rank_pattern"), "rank_pattern", file)

    def scale(self, names: tuple[str, ...], rank: int | None) -> float | None:
        """alpha / r, or alpha / sqrt(r) for rsLoRA, of one layer; ``None`` if no alpha is declared.

        ``names`` are what the layer may be called in the configuration. ``rank`` is that of the tensors,
        which is preferred to the configuration's. Raises `LoraFileError` for an alpha that is no number.
        """
        config = self._config
        alpha = self._alphas.value(names, config.get("lora_alpha", config.get("alpha")))
        declared = self._ranks.value(names, config.get("r"))
        r = declared if rank is None else rank
        if alpha is None or r is None:
            return None
        if not _is_number(alpha) or not _is_number(r) or float(r) <= 0:
            defect = "its adapter configuration has an alpha or rank that is no number"
            raise defect_error(self._file, defect, _REMEDY)
        return float(alpha) / (math.sqrt(float(r)) if config.get("use_rslora") is True else float(r))

    def notes(self) -> tuple[str, ...]:
        """What the configuration says in vain: patterns that match no layer."""
        return (*self._alphas.notes(), *self._ranks.notes())


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
