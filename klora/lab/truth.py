"""The true drawings of all pairs in one lossless picture, so that nothing but training needs the icon sets.

A row for each content LoRA; in it the style that taught it and the styles of its half that have a LoRA. The
picture's own metadata names rows and columns, so that it cannot be read by the wrong list. It is WebP, which
holds such drawings in two thirds of a PNG's room.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from klora.errors import KloraError
from klora.lab.model import SIZE
from klora.lab.recipes import INDIVIDUAL, RECIPES, STYLE, Recipe, styles_of
from klora.lab.world import individuals
from klora.lab.world.drawing import draw_kind
from klora.lab.world.icons import Picture
from klora.lab.world.styles import CONTENT_STYLE, STYLES

NAME = "truth.webp"


def true_picture(cache: Path, recipe: Recipe, style: str) -> Picture:
    """The true drawing of a content LoRA's subject in a style."""
    if recipe.kind == INDIVIDUAL:
        one = individuals.BY_NAME[recipe.subject]
        return individuals.draw(cache, one.kind, one.wears, STYLES[style])
    return draw_kind(cache, recipe.subject, STYLES[style])


def _columns(recipe: Recipe) -> list[str]:
    """The styles in which a content LoRA's subject is kept."""
    return [CONTENT_STYLE, *styles_of(recipe.half)]


def write(cache: Path, path: Path, further: Iterable[Recipe] = ()) -> Path:
    """Draw the subject of every content LoRA, the lab's and ``further`` ones, in the styles that it meets."""
    contents = [recipe for recipe in (*RECIPES.values(), *further) if recipe.kind != STYLE]
    columns = {recipe.name: _columns(recipe) for recipe in contents}
    rows = [[true_picture(cache, recipe, style) for style in columns[recipe.name]] for recipe in contents]
    return save(path, columns, rows)


def save(path: Path, columns: Mapping[str, Sequence[str]], rows: Sequence[Sequence[Picture]]) -> Path:
    """Write drawings [128, 128, 3] row by row; ``columns`` names each row's content LoRA and its styles."""
    from PIL import Image

    sheet = Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows]))
    sheet.save(path, lossless=True, quality=90, method=5, xmp=json.dumps(columns).encode())
    drawings.cache_clear()
    return path


@lru_cache(maxsize=2)
def drawings(path: Path) -> dict[tuple[str, str], Tensor]:
    """Every kept drawing by the content LoRA's name and the style's, each [3, 128, 128] in bytes."""
    from PIL import Image

    if not path.exists():
        raise KloraError(
            f"{path.name} is missing; draw it: python -m klora.lab train --stage icons --stage truth"
        )
    with Image.open(path) as image:
        told: dict[str, list[str]] = json.loads(image.info["xmp"])
        sheet = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return {
        (name, style): sheet[:, row * SIZE : (row + 1) * SIZE, column * SIZE : (column + 1) * SIZE].clone()
        for row, (name, styles) in enumerate(told.items())
        for column, style in enumerate(styles)
    }
