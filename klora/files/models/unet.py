"""The UNet of SD1, SD2, SDXL and Kolors: one family, whose models differ in depths and in the text's width.

The order is that of diffusers' forward pass; ``input_blocks`` and so on are the names of the original code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from klora.files.models.model import Block, Leaf, attention, linear

_THREE_BY_THREE = (3, 3)
_TIME = (
    linear("time_embedding.linear_1", "time_embed.0"),
    linear("time_embedding.linear_2", "time_embed.2"),
)
_LABEL = (
    linear("add_embedding.linear_1", "label_emb.0.0"),
    linear("add_embedding.linear_2", "label_emb.0.2"),
)
_AFTER = (linear("conv_norm_out", "out.0"), Leaf("conv_out", "out.2", kernel=_THREE_BY_THREE))
_RESNET = (
    linear("norm1", "in_layers.0"),
    Leaf("conv1", "in_layers.2", 1, kernel=_THREE_BY_THREE),
    linear("time_emb_proj", "emb_layers.1", 1),
    linear("norm2", "out_layers.0"),
    Leaf("conv2", "out_layers.3", 1, 1, kernel=_THREE_BY_THREE),
    linear("conv_shortcut", "skip_connection", 1),
)
_FRAME = (linear("norm", "norm"), linear("proj_in", "proj_in", 1, 1))
_FRAME_END = (linear("proj_out", "proj_out", 1, 1),)
_TRANSFORMER = (
    linear("norm1", "norm1"),
    *(attention(f"attn1.{one}", f"attn1.{one}") for one in ("to_q", "to_k", "to_v", "to_out.0")),
    linear("norm2", "norm2"),
    attention("attn2.to_q", "attn2.to_q"),
    *(attention(f"attn2.{one}", f"attn2.{one}", 1, "text") for one in ("to_k", "to_v")),
    attention("attn2.to_out.0", "attn2.to_out.0"),
    linear("norm3", "norm3"),
    linear("ff.net.0.proj", "ff.net.0.proj", 8, 1),
    linear("ff.net.2", "ff.net.2", 1, 4),
)
#: Levels of SD1, the deepest of the family.
_LEVELS = 4


def unet(down: Sequence[int], middle: int, up: Sequence[int], *, has_label: bool) -> tuple[Block, ...]:
    """The blocks of a UNet whose attentions have so many transformer blocks on each level.

    Blocks that other models of the family have are there in the number 0: a small model of one's own may
    have them, too. ``has_label`` is whether there is a second text embedding.
    """
    levels = len(down)
    return (
        Block("", "", _TIME),
        Block("", "", _LABEL, None if has_label else 0),
        Block("", "", (Leaf("conv_in", "input_blocks.0.0", kernel=_THREE_BY_THREE),)),
        *(one for level in range(_LEVELS) for one in _down(level, down[level : level + 1], levels)),
        *_middle(middle),
        *(one for level in range(_LEVELS) for one in _up(level, up[level : level + 1], up[0])),
        Block("", "", _AFTER),
    )


def _down(level: int, depths: Sequence[int], levels: int) -> Iterator[Block]:
    stem, count = f"down_blocks.{level}", None if depths else 0
    for index in range(2):
        native = f"input_blocks.{3 * level + index + 1}"
        yield Block(f"{stem}.resnets.{index}", f"{native}.0", _RESNET, count, stem)
        yield from _attention(f"{stem}.attentions.{index}", f"{native}.1", sum(depths), stem)
    yield from _attention(f"{stem}.attentions.2", None, 0, stem)
    last = level + 1 >= levels
    sampler = Leaf("conv", "op", kernel=_THREE_BY_THREE)
    native = f"input_blocks.{3 * level + 3}.0"
    yield Block(f"{stem}.downsamplers.0", native, (sampler,), 0 if last else None, stem)


def _middle(depth: int) -> Iterator[Block]:
    yield Block("mid_block.resnets.0", "middle_block.0", _RESNET, None, "mid_block")
    yield from _attention("mid_block.attentions.0", "middle_block.1", depth, "mid_block")
    yield Block("mid_block.resnets.1", "middle_block.2", _RESNET, None, "mid_block")


def _up(level: int, depths: Sequence[int], lowest: int) -> Iterator[Block]:
    stem, count = f"up_blocks.{level}", None if depths else 0
    for index in range(3):
        native = f"output_blocks.{3 * level + index}"
        yield Block(f"{stem}.resnets.{index}", f"{native}.0", _RESNET, count, stem)
        yield from _attention(f"{stem}.attentions.{index}", f"{native}.1", sum(depths), stem)
    # The lowest level of SD1 and SD2 has no attention before its upsampler.
    places = ("1", "2") if level == 0 and not lowest else ("2", "1")
    native, *others = (f"output_blocks.{3 * level + 2}.{place}" for place in places)
    sampler = Leaf("conv", "conv", kernel=_THREE_BY_THREE)
    yield Block(f"{stem}.upsamplers.0", native, (sampler,), count, stem, tuple(others))


def _attention(stem: str, native: str | None, depth: int, width: str) -> Iterator[Block]:
    count = None if depth else 0
    inner = None if native is None else f"{native}.transformer_blocks.#"
    yield Block(stem, native, _FRAME, count, width)
    yield Block(f"{stem}.transformer_blocks.#", inner, _TRANSFORMER, depth, width)
    yield Block(stem, native, _FRAME_END, count, width)


def level_widths(widths: Sequence[int], text: int) -> dict[str, tuple[int, ...]]:
    """The widths of the levels from the highest to the lowest, and that of the text, by name."""
    found: dict[str, tuple[int, ...]] = {"mid_block": (widths[-1],), "text": (text,)}
    for level, width in enumerate(widths):
        found[f"down_blocks.{level}"] = (width,)
        found[f"up_blocks.{len(widths) - 1 - level}"] = (width,)
    return found
