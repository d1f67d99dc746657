"""The presets that come with K-LoRA. Their names stand in saved pictures: they are never changed."""

from __future__ import annotations

from typing import Final

from klora.options import SettingValue
from klora.presets.preset import Preset
from klora.settings import DEFAULT_PRESET

#: The paper's settings, in full, so that they stay what they are when a default changes.
_PAPER: Final[dict[str, SettingValue]] = {
    "rule": "K-LoRA",
    "balance": 0.0,
    "guidance": "both",
    "schedule": "S",
    "alpha": 1.5,
    "beta": "0.5",
    "top_k": "rank",
    "gamma": "paper",
    "clock": "step",
    "other_layers": "fuse",
    "keep": 0.0,
}

#: Where a preset says so little that the defaults would decide what it means.
_K_LORA: Final[dict[str, SettingValue]] = {"rule": "K-LoRA", "balance": 0.0, "guidance": "both"}
_ADDING: Final[dict[str, SettingValue]] = {"rule": "weights", "balance": 0.0, "guidance": "both"}

BALANCED = Preset(DEFAULT_PRESET, {})
AS_PUBLISHED = Preset("As published: S", _PAPER)

BUILT_IN: tuple[Preset, ...] = (
    BALANCED,
    AS_PUBLISHED,
    Preset("As published: S*", {**_PAPER, "schedule": "S*", "beta": "1.3"}),
    Preset("Flux", {**_K_LORA, "schedule": "S*"}),
    Preset("Strong subject", {"balance": -0.4}),
    Preset("Strong style", {"balance": 0.4}),
    Preset("Adding, with windows", {**_ADDING, "windows": True}),
)
