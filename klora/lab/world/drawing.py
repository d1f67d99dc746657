"""True drawings of kinds, one by one and in groups that are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from klora.lab.keeping import kept
from klora.lab.model import SIZE
from klora.lab.world import icons
from klora.lab.world.icons import Picture
from klora.lab.world.styles import SCALE, Style, reduced


def draw_kind(cache: Path, kind: str, style: Style) -> Picture:
    """The true drawing of a kind in a style, [SIZE, SIZE, 3]."""
    return reduced(style.transform(icons.icon_pixels(cache, style.set_name, kind, SCALE * SIZE)))


def stacked(drawn: list[Picture]) -> Tensor:
    """Pictures [h, w, 3] as a tensor [n, 3, h, w] in bytes."""
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous()


def kinds_in_style(cache: Path, kinds: tuple[str, ...], style: Style, group: str) -> Tensor:
    """Drawings [kinds, 3, SIZE, SIZE] in bytes of a named group of kinds; rendered once."""
    path = cache / "drawings" / f"{group}-{style.name}.pt"

    def rendered() -> Tensor:
        shown = tqdm(kinds, desc=path.stem, mininterval=10)
        return stacked([draw_kind(cache, kind, style) for kind in shown])

    drawn: Tensor = kept(path, rendered)
    if len(drawn) != len(kinds):
        raise ValueError(f"{path.name} holds {len(drawn)} drawings, not {len(kinds)}; delete it")
    return drawn
