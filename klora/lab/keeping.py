"""Tensors that take long to make, kept in files.

Each file is written whole or not at all: a training may be ended at any moment, and two processes may make
the same file at once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from klora.files.writing import made_folder, written_whole


def keep(value: object, path: Path) -> None:
    """Write what ``torch.save`` can to a file, whose folder is made if need be; raises `KloraError`."""
    made_folder(path.parent)
    with written_whole(path) as draft:
        torch.save(value, draft)


def kept(path: Path, make: Callable[[], object]) -> Any:
    """What `make` returns, tensors and plain containers of them; from its file once it was made."""
    if not path.exists():
        keep(make(), path)
    return torch.load(path, weights_only=True)
