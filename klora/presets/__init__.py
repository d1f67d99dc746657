"""Presets: named settings of the rule, those that come with K-LoRA and those that a user saves."""

from klora.presets.built_in import AS_PUBLISHED, BALANCED, BUILT_IN
from klora.presets.preset import Preset, held_values
from klora.presets.shelf import Shelf
from klora.settings import NO_PRESET

__all__ = ["AS_PUBLISHED", "BALANCED", "BUILT_IN", "NO_PRESET", "Preset", "Shelf", "held_values"]
