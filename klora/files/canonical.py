"""Canonical layer names: diffusers' dotted module paths, their place in a forward pass, and their parts.

Every dialect is renamed to these names once, at the door. What this grammar does not know is no layer
of a known denoiser. The order was read off forward passes of diffusers' models, which the tests repeat.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Position = tuple[int, ...]

# --- UNet: SD1, SD2, SDXL -------------------------------------------------------------------------

_UNET_BEFORE = (
    "time_embedding.linear_1",
    "time_embedding.linear_2",
    "add_embedding.linear_1",
    "add_embedding.linear_2",
    "conv_in",
)
_UNET_AFTER = ("conv_norm_out", "conv_out")
_RESNET = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")
_ATTENTION_FRAME = ("norm", "proj_in", "transformer_blocks", "proj_out")
_UNET_TRANSFORMER = (
    "norm1",
    *(f"attn1.{one}" for one in ("to_q", "to_k", "to_v", "to_out.0")),
    "norm2",
    *(f"attn2.{one}" for one in ("to_q", "to_k", "to_v", "to_out.0")),
    "norm3",
    "ff.net.0.proj",
    "ff.net.2",
)

# --- Transformers: Flux, SD3 ----------------------------------------------------------------------

_EMBEDDERS = ("timestep_embedder", "guidance_embedder", "text_embedder")
_TRANSFORMER_BEFORE = (
    "pos_embed.proj",
    "x_embedder",
    *(f"time_text_embed.{one}.linear_{n}" for one in _EMBEDDERS for n in (1, 2)),
    "context_embedder",
)
_TRANSFORMER_AFTER = ("norm_out.linear", "norm_out.shift_and_scale", "proj_out")
_DOUBLE_BLOCK = (
    *("norm1.linear", "norm1_context.linear"),
    *("attn.to_qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    *("attn.to_added_qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    *("attn.norm_q", "attn.norm_k", "attn.norm_added_q", "attn.norm_added_k"),
    *("attn.to_out.0", "attn.to_add_out"),
    *(
        "attn2.to_qkv",
        "attn2.to_q",
        "attn2.to_k",
        "attn2.to_v",
        "attn2.norm_q",
        "attn2.norm_k",
        "attn2.to_out.0",
    ),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
)
_SINGLE_BLOCK = (
    *("norm.linear", "to_qkv_mlp", "proj_mlp"),
    *("attn.to_qkv", "attn.to_q", "attn.to_k", "attn.to_v", "attn.norm_q", "attn.norm_k"),
    "proj_out",
)


def _places(names: tuple[str, ...]) -> Mapping[str, int]:
    return {name: place for place, name in enumerate(names)}


_BEFORE = {**_places(_UNET_BEFORE), **_places(_TRANSFORMER_BEFORE)}
_AFTER = {**_places(_UNET_AFTER), **_places(_TRANSFORMER_AFTER)}
_RESNET_PLACES = _places(_RESNET)
_FRAME_PLACES = _places(_ATTENTION_FRAME)
_UNET_TRANSFORMER_PLACES = _places(_UNET_TRANSFORMER)
_DOUBLE_PLACES = _places(_DOUBLE_BLOCK)
_SINGLE_PLACES = _places(_SINGLE_BLOCK)

_UNET_BLOCK = re.compile(r"(?:(down_blocks|up_blocks)\.(\d{1,2})|(mid_block))\.(.+)")
_RESNET_NAME = re.compile(r"resnets\.(\d{1,2})\.(.+)")
_ATTENTION_NAME = re.compile(r"attentions\.(\d{1,2})\.([a-z_]+)(?:\.(\d{1,3})\.(.+))?")
_TRANSFORMER_NAME = re.compile(r"(single_)?transformer_blocks\.(\d{1,3})\.(.+)")

_STAGES = {None: 2, "down_blocks": 1, "up_blocks": 3}
_AFTER_ALL_PAIRS = 1000


def forward_position(name: str) -> Position | None:
    """Where a forward pass calls the layer: sorts like time. ``None`` if no known denoiser has such a
    layer."""
    if name in _BEFORE:
        return (0, _BEFORE[name])
    if name in _AFTER:
        return (9, _AFTER[name])
    if match := _UNET_BLOCK.fullmatch(name):
        stage, block, _, inside = match.groups()
        place = _inside_unet_block(inside)
        return None if place is None else (_STAGES[stage], int(block or 0), *place)
    if match := _TRANSFORMER_NAME.fullmatch(name):
        single, block, leaf = match.groups()
        place_of = _SINGLE_PLACES if single else _DOUBLE_PLACES
        return (4 if single else 3, int(block), place_of[leaf]) if leaf in place_of else None
    return None


def _inside_unet_block(inside: str) -> Position | None:
    """A block calls resnets[j] then attentions[j] for each j, and its down- or upsampler last."""
    if match := _RESNET_NAME.fullmatch(inside):
        leaf = match[2]
        return (2 * int(match[1]), _RESNET_PLACES[leaf]) if leaf in _RESNET_PLACES else None
    if inside in ("downsamplers.0.conv", "upsamplers.0.conv"):
        return (_AFTER_ALL_PAIRS,)
    if not (match := _ATTENTION_NAME.fullmatch(inside)):
        return None
    number, frame, block, leaf = match.groups()
    start = (2 * int(number) + 1, _FRAME_PLACES.get(frame, -1))
    if frame == "transformer_blocks":
        known = leaf in _UNET_TRANSFORMER_PLACES
        return (*start, int(block), _UNET_TRANSFORMER_PLACES[leaf]) if known else None
    return start if frame in _FRAME_PLACES and block is None else None


_ATTENTION_LINEAR = re.compile(
    r".+\.attn[12]?\.(?:to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out|to_qkv|to_added_qkv)"
)

#: In models that have no canonical names here, such as Lumina, Z-Image, Wan and Krea: by the usual words.
_ATTENTION_LINEAR_ELSEWHERE = re.compile(
    r"diffusion_model\..+\.(?:\w+_)?(?:attn|attention)[12]?"
    r"\.(?:w?[qkvo]|[kv]_img|qkv|kv|out|proj|to_[qkv]|to_out(?:\.0)?|(?:q|k|v|o|kv|qkv|out|output)_proj)"
)


def is_attention(name: str) -> bool:
    """Whether the layer is a linear of an attention: q, k, v or output, fused or not.

    A name that is not canonical, under ``diffusion_model.``, is judged by the words that models use.

    Flux's ``single_transformer_blocks.N.proj_out`` is not: of its input columns four fifths are the MLP's.
    The fused ``to_qkv_mlp`` is not either, as a whole; three of its parts are.
    """
    words = _ATTENTION_LINEAR_ELSEWHERE if name.startswith("diffusion_model.") else _ATTENTION_LINEAR
    return words.fullmatch(name) is not None


_THREE_BY_THREE = re.compile(r"conv_in|conv_out|.+\.resnets\.\d+\.conv[12]|.+\.(?:down|up)samplers\.0\.conv")


def kernel_of(name: str) -> tuple[int, int] | None:
    """The kernel of a convolution, where the name alone tells it: some types store a flat matrix."""
    return (3, 3) if _THREE_BY_THREE.fullmatch(name) else None


# --- Fused projections ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A projection inside a fused one: its own name, and its rows in the fused output, in order."""

    name: str
    rows: tuple[tuple[int, int], ...]


#: Last component of a fused name -> (component of the part, its row ranges in units of the whole's
#: ``units``).
_FUSED: Mapping[str, tuple[int, tuple[tuple[str, tuple[tuple[int, int], ...]], ...]]] = {
    "to_qkv": (3, (("to_q", ((0, 1),)), ("to_k", ((1, 2),)), ("to_v", ((2, 3),)))),
    "to_added_qkv": (
        3,
        (("add_q_proj", ((0, 1),)), ("add_k_proj", ((1, 2),)), ("add_v_proj", ((2, 3),))),
    ),
    # Flux's linear1: q, k, v of the hidden width and an MLP of four times that.
    "to_qkv_mlp": (
        7,
        (
            ("attn.to_q", ((0, 1),)),
            ("attn.to_k", ((1, 2),)),
            ("attn.to_v", ((2, 3),)),
            ("proj_mlp", ((3, 7),)),
        ),
    ),
    # The original models store shift before scale, diffusers scale before shift.
    "shift_and_scale": (2, (("linear", ((1, 2), (0, 1))),)),
}


def parts_of(name: str, rows: int) -> tuple[Part, ...]:
    """The parts of the fused layer ``name`` whose output has ``rows`` rows; none if it is not fused.

    Raises ``ValueError`` if ``rows`` cannot be divided so.
    """
    stem, _, last = name.rpartition(".")
    if last not in _FUSED:
        return ()
    units, parts = _FUSED[last]
    if rows % units:
        raise ValueError(f"{rows} output rows cannot be divided by {units}")
    unit = rows // units
    return tuple(
        Part(f"{stem}.{leaf}", tuple((first * unit, last * unit) for first, last in ranges))
        for leaf, ranges in parts
    )


def part_names(name: str) -> tuple[str, ...]:
    """Names of the parts of a fused layer, in the order of their rows; none if ``name`` is not fused."""
    stem, _, last = name.rpartition(".")
    return tuple(f"{stem}.{leaf}" for leaf, _ in _FUSED[last][1]) if last in _FUSED else ()


def whole_rows(name: str, rows: Mapping[str, int]) -> int | None:
    """Output rows of the fused layer ``name``, from the rows of some of its parts; ``None`` if they
    disagree."""
    stem, _, last = name.rpartition(".")
    units, parts = _FUSED.get(last, (0, ()))
    shares = {f"{stem}.{leaf}": sum(stop - start for start, stop in ranges) for leaf, ranges in parts}
    found = {rows[part] * units / shares[part] if part in shares else -1.0 for part in rows}
    whole = found.pop() if len(found) == 1 else -1.0
    return int(whole) if whole > 0 and whole == int(whole) else None
