"""Labelled contact sheets: pictures in rows and columns that are named, large enough to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

BACKGROUND, INK, FAINT = "white", "#202020", "#707070"
_GAP = 6


def _font(size: int) -> Any:
    """DejaVu Sans, which comes with matplotlib, at ``size`` pixels."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    """The text in lines of at most ``width`` pixels, broken between words."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines or [""]


def labelled_sheet(
    rows: Sequence[Sequence[Tensor]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    enlarge: int = 4,
    title: str = "",
    font_size: int = 16,
) -> Any:
    """A ``PIL.Image`` of pictures [3, h, w] in bytes, all of one size, with names of rows and columns."""
    from PIL import Image, ImageDraw

    _, height, width = (enlarge * edge for edge in rows[0][0].shape)
    font, large = _font(font_size), _font(round(1.25 * font_size))
    line = round(1.3 * font_size)
    heads = [_wrapped(label, font, width) for label in column_labels]
    margin = max(_wrapped_width(label, font) for label in row_labels) + 2 * _GAP
    title_height = 2 * line if title else 0
    top = title_height + line * max(len(head) for head in heads) + _GAP
    sheet = Image.new(
        "RGB",
        (margin + len(column_labels) * (width + _GAP), top + len(rows) * (height + _GAP)),
        BACKGROUND,
    )
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, _GAP), title, INK, large)
    for column, head in enumerate(heads):
        centre = margin + column * (width + _GAP) + width // 2
        pen.multiline_text((centre, top - _GAP), "\n".join(head), INK, font, anchor="md", align="center")
    for row, pictures in enumerate(rows):
        place = top + row * (height + _GAP)
        label = "\n".join(row_labels[row].splitlines())
        pen.multiline_text((_GAP, place + height // 2), label, FAINT, font, anchor="lm")
        for column, picture in enumerate(pictures):
            drawn = Image.fromarray(picture.permute(1, 2, 0).numpy())
            drawn = drawn.resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(drawn, (margin + column * (width + _GAP), place))
    return sheet


def _wrapped_width(label: str, font: Any) -> int:
    """Width of the longest line in pixels."""
    return max((int(font.getlength(line)) for line in label.splitlines()), default=0)
