"""Canonical layer names: diffusers' dotted module paths, their place in a forward pass, and their parts.

Every dialect is renamed to these names once, at the door. What no model in `klora.files.models` declares is
no layer of a known denoiser. The order was read off forward passes of diffusers' models, which the tests
repeat.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

from klora.files.models import MODELS
from klora.files.models.grammar import Found, Grammar, Order, filled, part_patterns

Position = tuple[int, ...]

#: More than a model has rows of blocks and single layers.
_LAST = 10_000

GRAMMARS: Mapping[str, Grammar] = {model.name: Grammar(model) for model in MODELS}
_ORDER = Order(MODELS)


@cache
def _order_of(base_model: str) -> Order:
    return Order((GRAMMARS[base_model].model,))


@lru_cache(maxsize=65536)
def found_layer(name: str) -> Found | None:
    """The layer with this canonical name, in the first model that has it."""
    for grammar in GRAMMARS.values():
        found = grammar.find(name)
        if found is not None and found.name == name:
            return found
    return None


def forward_position(name: str, base_model: str = "unknown") -> Position | None:
    """Where a forward pass calls the layer: sorts like time. ``None`` if no known denoiser has such a layer.

    Models that share names may call them in different orders; with ``base_model`` the order is that model's.
    Compare only positions of one and the same ``base_model``.
    """
    if base_model in GRAMMARS:
        found = GRAMMARS[base_model].find(name)
        if found is not None and found.name == name:
            return _order_of(base_model).place(found)
    found = found_layer(name)
    # Behind all of the model's own: a stranger in a file of this model.
    if found is None:
        return None
    return (_LAST, *_ORDER.place(found)) if base_model in GRAMMARS else _ORDER.place(found)


def in_forward_order(layers: Iterable[str], base_model: str = "unknown") -> list[str]:
    """Layers in the order in which a forward pass of ``base_model`` calls them; those of no known model
    behind, as they come."""
    return sorted(layers, key=lambda name: forward_position(name, base_model) or (sys.maxsize,))


#: In models that have no canonical names here: by the words that models use.
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
    if name.startswith("diffusion_model."):
        return _ATTENTION_LINEAR_ELSEWHERE.fullmatch(name) is not None
    found = found_layer(name)
    return found is not None and found.layer.leaf.attention


def is_embedder(name: str) -> bool:
    """Whether the layer brings pictures, texts or time into the model."""
    found = found_layer(name)
    return found is not None and found.layer.block.embeds


def kernel_of(name: str) -> tuple[int, int] | None:
    """The kernel of a convolution, where the name alone tells it: some types store a flat matrix."""
    found = found_layer(name)
    return None if found is None else found.layer.leaf.kernel


# --- Fused projections ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A projection inside a fused one: its own name, and its rows in the fused output, in order."""

    name: str
    rows: tuple[tuple[int, int], ...]


def parts_of(name: str, rows: int) -> tuple[Part, ...]:
    """The parts of the fused layer ``name`` whose output has ``rows`` rows; none if it is not fused.

    Raises ``ValueError`` if ``rows`` cannot be divided so.
    """
    found = found_layer(name)
    if found is None or not found.layer.leaf.parts:
        return ()
    units = found.layer.leaf.units
    if rows % units:
        parts = ", ".join(part.rpartition(".")[2] for part, _ in found.layer.leaf.parts)
        raise ValueError(f"{rows} output rows cannot be divided by {units}, as those of {parts} together can")
    unit = rows // units
    return tuple(
        Part(part, tuple((first * unit, last * unit) for first, last in ranges))
        for part, (_, ranges) in zip(_part_names(found), found.layer.leaf.parts, strict=True)
    )


def part_names(name: str) -> tuple[str, ...]:
    """Names of the parts of a fused layer, in the order of their rows; none if ``name`` is not fused."""
    found = found_layer(name)
    return () if found is None else _part_names(found)


def _part_names(found: Found) -> tuple[str, ...]:
    return tuple(filled(pattern, found.numbers) for pattern in part_patterns(found.layer))


def whole_rows(name: str, rows: Mapping[str, int]) -> int | None:
    """Output rows of the fused layer ``name``, from the rows of some of its parts; ``None`` if they
    disagree."""
    found = found_layer(name)
    if found is None:
        return None
    leaf = found.layer.leaf
    shares = {
        part: sum(stop - start for start, stop in ranges)
        for part, (_, ranges) in zip(_part_names(found), leaf.parts, strict=True)
    }
    wholes = {rows[part] * leaf.units / shares[part] if part in shares else -1.0 for part in rows}
    whole = wholes.pop() if len(wholes) == 1 else -1.0
    return int(whole) if whole > 0 and whole % leaf.units == 0 else None
