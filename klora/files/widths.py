"""Wrong input or output sizes, found without the model: a block has one width, in which its layers agree.

A LoRA whose layer has 300 inputs where its neighbours have 320 is broken, whatever the model. The width of a
block is voted for by its layers, so that small test models pass as well as real ones; only a tie is decided
by the sizes of the real ones. A file that is consistent but made for another size is caught by the host,
against the weight.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

#: Leaf -> (output, input) in widths of the block; ``None``: not told by the width.
_MULTIPLES: Mapping[str, tuple[int | None, int | None]] = {
    **{f"attn1.{one}": (1, 1) for one in ("to_q", "to_k", "to_v", "to_out.0")},
    **{"attn2.to_q": (1, 1), "attn2.to_out.0": (1, 1), "attn2.to_k": (1, None), "attn2.to_v": (1, None)},
    **{"ff.net.0.proj": (8, 1), "ff.net.2": (1, 4), "proj_in": (1, 1), "proj_out": (1, 1)},
    **{"conv1": (1, None), "conv2": (1, 1), "conv_shortcut": (1, None), "time_emb_proj": (1, None)},
}
_TRANSFORMER_MULTIPLES: Mapping[str, tuple[int | None, int | None]] = {
    **{f"attn.{one}": (1, 1) for one in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")},
    **{f"attn.add_{one}_proj": (1, 1) for one in "qkv"},
    **{f"attn2.{one}": (1, 1) for one in ("to_q", "to_k", "to_v", "to_out.0")},
    **{"attn.to_qkv": (3, 1), "attn.to_added_qkv": (3, 1), "attn2.to_qkv": (3, 1), "to_qkv_mlp": (7, 1)},
    **{
        "ff.net.0.proj": (4, 1),
        "ff.net.2": (1, 4),
        "ff_context.net.0.proj": (4, 1),
        "ff_context.net.2": (1, 4),
    },
    **{"proj_mlp": (4, 1), "norm.linear": (3, 1)},
}

_UNET_LAYER = re.compile(
    r"((?:down_blocks|up_blocks)\.\d+|mid_block)\.(?:resnets\.\d+|attentions\.\d+(?:\.transformer_blocks\.\d+)?)\.(.+)"
)
_TRANSFORMER_LAYER = re.compile(r"(single_)?transformer_blocks\.\d+\.(.+)")

#: Widths of the blocks of the real models.
_REAL_WIDTHS = {
    "SD1": (320, 640, 1280, 1280),
    "SD2": (320, 640, 1280, 1280),
    "SDXL": (320, 640, 1280),
}
_REAL_TEXT_WIDTHS = {"SD1": 768, "SD2": 1024, "SDXL": 2048}
_REAL_TRANSFORMER = {"Flux": 3072}


@dataclass(frozen=True)
class Side:
    """A side of a layer whose size is ``multiple`` times a width that ``group`` shares."""

    layer: str
    side: str
    group: str
    size: int
    multiple: int


def wrong_size(shapes: Mapping[str, tuple[int, ...]], base_model: str) -> tuple[str, str] | None:
    """The first layer that is out of step with its block, and how; ``None`` if all agree.

    ``shapes`` are those of dW by canonical name.
    """
    sides = [side for name, shape in shapes.items() for side in _sides(name, shape)]
    votes: dict[str, Counter[float]] = {}
    for one in sides:
        votes.setdefault(one.group, Counter())[one.size / one.multiple] += 1
    widths = {group: _elected(count, _real_width(group, base_model)) for group, count in votes.items()}
    for one in sides:
        width = widths[one.group]
        if width is not None and one.size != width * one.multiple:
            return (
                one.layer,
                f"wrong {one.side} size {one.size} where the rest of the file says {width * one.multiple:g}",
            )
    return None


def _elected(votes: Counter[float], real: int | None) -> float | None:
    """The width with most votes; in a tie the real model's, or none if that is not in question."""
    most = max(votes.values())
    leaders = [width for width, count in votes.items() if count == most]
    if len(leaders) == 1:
        return leaders[0]
    return float(real) if real in leaders else None


def _sides(name: str, shape: tuple[int, ...]) -> Iterable[Side]:
    if match := _UNET_LAYER.fullmatch(name):
        group, (out, inside) = match[1], _MULTIPLES.get(match[2], (None, None))
        if match[2] in ("attn2.to_k", "attn2.to_v"):
            yield Side(name, "input", "text", shape[1], 1)
    elif match := _TRANSFORMER_LAYER.fullmatch(name):
        table = {"proj_out": (1, 5)} if match[1] and match[2] == "proj_out" else _TRANSFORMER_MULTIPLES
        group, (out, inside) = "transformer", table.get(match[2], (None, None))
    else:
        return
    if out is not None:
        yield Side(name, "output", group, shape[0], out)
    if inside is not None:
        yield Side(name, "input", group, shape[1], inside)


def _real_width(group: str, base_model: str) -> int | None:
    if group == "text":
        return _REAL_TEXT_WIDTHS.get(base_model)
    if group == "transformer":
        return _REAL_TRANSFORMER.get(base_model)
    widths = _REAL_WIDTHS.get(base_model)
    if widths is None:
        return None
    side, _, number = group.partition(".")
    if side == "mid_block":
        return widths[-1]
    level = int(number) if side == "down_blocks" else len(widths) - 1 - int(number)
    return widths[level] if 0 <= level < len(widths) else None
