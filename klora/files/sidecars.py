"""Small text files beside a LoRA: the WebUI's note about it, PEFT's configuration."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read_sidecar(path: Path, limit: int) -> str | None:
    """The text of ``path``, or ``None`` if there is no ordinary file of at most ``limit`` bytes.

    A pipe, a device or a folder under that name is left alone: to open one may block for ever.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
            return None
        return path.read_bytes()[:limit].decode("utf-8-sig", "replace")
    except (OSError, ValueError, RuntimeError):
        return None
