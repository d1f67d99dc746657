"""Where a WebUI keeps the scores of pairs from one start to the next."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from klora.planning import folder_of_user

_FOLDER = "klora"


def score_folder() -> Path | None:
    """``KLORA_CACHE`` if it is set, as for the command line (empty: nothing is kept); else ``klora`` in the
    folder where the WebUI keeps what it can compute again, such as hashes. ``None`` if it has no such folder.
    """
    if "KLORA_CACHE" in os.environ:
        return folder_of_user()
    try:
        cache = importlib.import_module("modules.cache")
        data = importlib.import_module("modules.paths_internal").data_path
    except (ImportError, AttributeError):
        return None
    return Path(getattr(cache, "cache_dir", None) or Path(data) / "cache") / _FOLDER
