"""The true drawings of the held-out subjects, shipped so that demo and benchmark need neither icons nor npm.

One lossless PNG holds them all: a row for each subject, a column for each style. Its own metadata names
rows, columns and pairs that no icon set draws, so that the picture cannot be read by the wrong list.
"""

from __future__ import annotations

import json
from functools import cache as remember
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from klora.errors import KloraError
from klora.lab import world

PATH = Path(__file__).parent / "data" / "truth.png"
_KEY = "klora-truth"


def styles() -> tuple[world.Style, ...]:
    """The styles that are kept: the one that teaches content LoRAs, and the held-out ones."""
    return (world.STYLES[world.CONTENT_STYLE], *world.HELD_OUT_STYLES)


def write(cache: Path, path: Path = PATH) -> Path:
    """Draw every held-out subject in every kept style, from the icon sets in ``cache``."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    size = world.SIZE
    sheet = np.full((len(world.HELD_OUT_SUBJECTS) * size, len(styles()) * size, 3), 255, np.uint8)
    missing = []
    for row, subject in enumerate(world.HELD_OUT_SUBJECTS):
        for column, style in enumerate(styles()):
            if not world.exists(cache, subject, style):
                missing.append([subject, style.name])
                continue
            top, left = row * size, column * size
            sheet[top : top + size, left : left + size] = world.draw(cache, subject, style)
    told = {
        "subjects": world.HELD_OUT_SUBJECTS,
        "styles": [style.name for style in styles()],
        "missing": missing,
    }
    metadata = PngInfo()
    metadata.add_text(_KEY, json.dumps(told))
    Image.fromarray(sheet).save(path, pnginfo=metadata, optimize=True)
    drawings.cache_clear()
    return path


@remember
def drawings(path: Path = PATH) -> dict[tuple[str, str], Tensor]:
    """Every kept drawing by subject and style, each [3, 64, 64] in bytes."""
    from PIL import Image

    if not path.exists():
        raise KloraError(f"{path.name} is missing; draw it from the icon sets: python -m klora.lab truth")
    size = world.SIZE
    with Image.open(path) as image:
        told = json.loads(image.info[_KEY])
        sheet = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    missing = {tuple(pair) for pair in told["missing"]}
    return {
        (subject, style): sheet[:, row * size : (row + 1) * size, column * size : (column + 1) * size].clone()
        for row, subject in enumerate(told["subjects"])
        for column, style in enumerate(told["styles"])
        if (subject, style) not in missing
    }


def drawing(subject: str, style: str) -> Tensor:
    """The true drawing of a pair, [3, 64, 64] in bytes; raises `KloraError` if it is not kept."""
    found = drawings().get((subject, style))
    if found is None:
        raise KloraError(
            f"there is no true drawing of {subject} in the style {style}; if the lab's lists have "
            "changed, draw them anew: python -m klora.lab truth"
        )
    return found
