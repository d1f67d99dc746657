"""WebUIs that fuse two LoRAs without us."""

from __future__ import annotations

import importlib.util
import sys

from klora.errors import HostError


def foreign() -> HostError | None:
    """The error for a WebUI that fuses two LoRAs without us, if this is one."""
    if not has_module("modules.lora.networks"):
        return None
    return HostError(
        "SD.Next fuses content and style LoRAs by itself: choose the LoRA stack mode 'klora' in its settings "
        "and untick K-LoRA here."
    )


def has_module(module: str) -> bool:
    """Whether a module is loaded or could be."""
    if module in sys.modules:
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
