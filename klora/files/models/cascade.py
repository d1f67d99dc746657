"""Stable Cascade, stage C: a UNet of residual, time and attention blocks in turn."""

from collections.abc import Iterator, Sequence

from klora.files.models.model import BaseModel, Block, attention, linear

_BLOCK = (
    linear("depthwise", "depthwise"),
    linear("channelwise.0", "channelwise.0"),
    linear("channelwise.4", "channelwise.4"),
    *(linear(name, name) for name in ("mapper", "mapper_sca", "mapper_crp")),
    linear("kv_mapper.1", "kv_mapper.1"),
    *(attention(f"attention.to_{one}", f"attention.attn.to_{one}") for one in "qkv"),
    attention("attention.to_out.0", "attention.attn.out_proj"),
)


def _levels(side: str, lengths: Sequence[int]) -> Iterator[Block]:
    for level, length in enumerate(lengths):
        yield Block(f"{side}.{level}.#", f"{side}.{level}.#", _BLOCK, length, width=f"{side}.{level}")


_TEXT = ("clip_txt_pooled_mapper", "clip_txt_mapper", "clip_img_mapper")

MODEL = BaseModel(
    "Stable Cascade",
    (
        Block("", "", tuple(linear(name, name) for name in (*_TEXT, "embedding.1"))),
        *_levels("down_blocks", (24, 72)),
        *_levels("up_blocks", (72, 24)),
        Block("", "", (linear("clf.1", "clf.1"),)),
    ),
    words=("cascade", "wuerstchen"),
    configurations=("Stable_Cascade_C",),
)
