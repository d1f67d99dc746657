"""The picture of a plan: how much of each LoRA each layer gets at each step."""

from __future__ import annotations

from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from klora.pictures.blocks import runs_of_blocks
from klora.schedule import Plan

# Orange and blue are told apart by colour-blind readers and on a grey print.
CONTENT_COLOUR = "#f28e2b"
STYLE_COLOUR = "#3b6fb6"


def draw_plan(plan: Plan, title: str = "What wins where") -> Figure:
    """A heat map, layers (top: first in a forward pass) by steps, with the style's share per step."""
    figure = Figure(figsize=(7.2, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
    edges = (0.5, plan.steps + 0.5)
    upper.imshow(
        colours(plan).transpose(1, 0, 2),
        aspect="auto",
        interpolation="nearest",
        extent=(*edges, len(plan.layers) - 0.5, -0.5),
    )
    ticks = _block_ticks(plan.layers)
    upper.set_yticks([at for at, _, _ in ticks], [name for _, _, name in ticks], fontsize=8)
    for _, border, _ in ticks[1:]:
        upper.axhline(border - 0.5, color="white", linewidth=0.7)
    upper.set_ylabel(f"{len(plan.layers)} layers, in forward order")
    upper.set_title(
        f"{title}: content {plan.content_share:.0%}, style {1 - plan.content_share:.0%}", fontsize=11
    )
    figure.legend(
        handles=[Patch(color=CONTENT_COLOUR, label="content"), Patch(color=STYLE_COLOUR, label="style")],
        loc="outside lower center",
        ncols=2,
        frameon=False,
    )
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    steps = np.arange(1, plan.steps + 1)
    lower.bar(steps, 100 * (1 - plan.content_part.mean(axis=1)), width=1.0, color=STYLE_COLOUR)
    lower.set(ylim=(0, 100), xlim=edges, xlabel="step", ylabel="style %")
    return figure


def colours(plan: Plan) -> NDArray[np.float64]:
    """Red, green and blue, ``[steps, layers, 3]`` from 0 to 1.

    The two LoRAs' colours mixed by their parts, on white the paler the less of both there is. Both in full
    is the even mixture; a LoRA beyond full is shown as full.
    """
    amounts = np.clip(np.abs(plan.shares[:, :, :2]), 0, 1)
    content = plan.content_part[:, :, None]
    mixed = content * np.array(to_rgb(CONTENT_COLOUR)) + (1 - content) * np.array(to_rgb(STYLE_COLOUR))
    strength = amounts.max(axis=2, initial=0)[:, :, None]
    painted: NDArray[np.float64] = 1 - strength * (1 - mixed)
    return painted


def save_plan(plan: Plan, file: str | BinaryIO, title: str = "What wins where") -> None:
    """Write the heat map as PNG to a path or an open binary file."""
    draw_plan(plan, title).savefig(file, format="png", dpi=110)


def plan_image(plan: Plan, title: str = "What wins where") -> Any:
    """The heat map as a ``PIL.Image``, which is what WebUIs show."""
    from PIL import Image  # not among the engine's own dependencies; every WebUI has it

    buffer = BytesIO()
    save_plan(plan, buffer, title)
    return Image.open(buffer).convert("RGB")


def _block_ticks(layers: tuple[str, ...]) -> list[tuple[float, int, str]]:
    """(middle, first, name) of each run of layers that belong to one block."""
    return [(first + (count - 1) / 2, first, name) for name, first, count in runs_of_blocks(layers)]
