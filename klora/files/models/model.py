"""What a base model declares about itself: its layers in the order of a forward pass, and how to tell it.

A layer has one canonical name, which is diffusers' dotted module path where diffusers has the model. ``#``
stands for a number in a name. The words in which the model's own code, the WebUIs and the trainers call the
same layer stand beside it, so that everything about a layer is on one line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

#: Rows of a fused layer's output, in units that its parts agree on.
Ranges = tuple[tuple[int, int], ...]

#: A side of a layer: so many times the width of its block, or the name of another width of the model.
Size = float | str | None


@dataclass(frozen=True)
class Leaf:
    """A layer inside a block.

    ``native`` is what the model's own code and the WebUIs call it, ``also`` what others do. ``out`` and
    ``inside`` are its sizes. ``parts`` are the projections fused in it, by their names in the block, and the
    rows that each has, in units. ``kernel`` is that of a convolution which some types store as a matrix. Of
    some fused layers the projections are no modules in diffusers either: ``fused_in_diffusers``.
    """

    name: str
    native: str | None = None
    out: Size = None
    inside: Size = None
    attention: bool = False
    also: tuple[str, ...] = ()
    parts: tuple[tuple[str, Ranges], ...] = ()
    kernel: tuple[int, int] | None = None
    fused_in_diffusers: bool = False

    @property
    def units(self) -> int:
        """Into how many units the output of a fused layer is divided."""
        return max(stop for _, ranges in self.parts for _, stop in ranges)


def attention(name: str, native: str | None = None, out: Size = 1, inside: Size = 1, *also: str) -> Leaf:
    """A linear of an attention: q, k, v or output."""
    return Leaf(name, native, out, inside, attention=True, also=also)


def linear(name: str, native: str | None = None, out: Size = None, inside: Size = None, *also: str) -> Leaf:
    """Any other layer."""
    return Leaf(name, native, out, inside, also=also)


def fused(
    name: str, native: str | None, parts: tuple[tuple[str, int], ...], *also: str, attention: bool = False
) -> Leaf:
    """Projections stored as one layer: (name in the block, rows in units) in the order of the rows."""
    start, ranges = 0, []
    for part, units in parts:
        ranges.append((part, ((start, start + units),)))
        start += units
    return Leaf(name, native, start, 1, attention, also, tuple(ranges))


def swapped(name: str, native: str, part: str) -> Leaf:
    """A modulation that the original code stores as shift, scale and diffusers as scale, shift."""
    return Leaf(name, native, parts=((part, ((1, 2), (0, 1))),))


@dataclass(frozen=True)
class Block:
    """A block: its canonical path, its native path, and its layers in the order in which they are called.

    A ``#`` in the path makes it a row of equal blocks, of which the real model has ``count``; a count of 0
    is a block that other models of the family have. ``width`` names the width that the sizes refer to.
    ``embeds`` says that its layers bring pictures, texts and time into the model: they are left to the host,
    because variants of a model (control, inpainting) differ in nothing but their sizes.
    """

    name: str
    native: str | None
    leaves: tuple[Leaf, ...]
    count: int | None = None
    width: str = "transformer"
    also: tuple[str, ...] = ()
    embeds: bool = False


@dataclass(frozen=True)
class Layer:
    """A leaf in its block: ``pattern`` is its canonical name with ``#`` for numbers."""

    block: Block
    leaf: Leaf

    @property
    def pattern(self) -> str:
        """Canonical name, with ``#`` for numbers."""
        return joined(self.block.name, self.leaf.name)

    @property
    def native(self) -> str | None:
        """The path in the model's own code, with ``#`` for numbers."""
        if self.leaf.native is None or self.block.native is None:
            return None
        return joined(self.block.native, self.leaf.native)

    def spellings(self) -> Iterator[str]:
        """Every path that leads to this layer, the canonical one first."""
        block, leaf = self.block, self.leaf
        pairs = [(block.name, leaf.name), (block.native, leaf.native)]
        pairs += [(stem, other) for stem in (block.name, block.native) for other in leaf.also]
        pairs += [(stem, other) for stem in block.also for other in (leaf.name, leaf.native, *leaf.also)]
        whole = (joined(stem, other) for stem, other in pairs if stem is not None and other is not None)
        yield from dict.fromkeys(whole)


def joined(stem: str, leaf: str) -> str:
    """Two halves of a path; either may be empty."""
    return f"{stem}.{leaf}" if stem and leaf else stem or leaf


@dataclass(frozen=True)
class BaseModel:
    """A base model for which LoRA files are made.

    ``blocks`` stand in forward order. ``widths`` are the sizes that the real model has, by the name of the
    width. ``words`` are what metadata call it. A model with ``marks`` is taken only for a file that has a
    layer of one of these canonical patterns, or says so in its metadata: without them it is not told from
    another. ``yields_to`` names models that a file is for if it fits them too and nothing else tells.

    ``attributes`` and ``configurations`` are how a WebUI's loaded model says that it is this one: an
    attribute that is true, or the class of its ``model_config``. ``also_loads`` names further models whose
    files the loaded model takes. ``hosts`` are the programs on which K-LoRA was tried with it. ``variants``
    are models with the same layers, and the words by which a file's metadata or name tell them.
    ``diffusers_prefix`` stands before the denoiser's layers in diffusers' files; ``kohya_is_native`` is
    whether kohya's scripts write the native names; ``text_encoders`` leads from the text encoders that the
    model has to their prefixes in kohya's files.
    """

    name: str
    blocks: tuple[Block, ...]
    widths: dict[str, tuple[int, ...]] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    yields_to: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    configurations: tuple[str, ...] = ()
    also_loads: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    variants: tuple[tuple[str, tuple[str, ...]], ...] = ()
    diffusers_prefix: str = "transformer."
    kohya_is_native: bool = True
    text_encoders: dict[str, str] = field(default_factory=dict)

    def layers(self) -> Iterator[Layer]:
        """All layers, in forward order."""
        return (Layer(block, leaf) for block in self.blocks for leaf in block.leaves)


def without(leaves: tuple[Leaf, ...], *names: str) -> tuple[Leaf, ...]:
    """The leaves but for some, for a model that lacks them."""
    return tuple(leaf for leaf in leaves if leaf.name not in names)


def changed(leaves: tuple[Leaf, ...], *others: Leaf) -> tuple[Leaf, ...]:
    """The leaves with those of the same name exchanged, for a model in which they differ."""
    table = {leaf.name: leaf for leaf in others}
    return tuple(table.get(leaf.name, leaf) for leaf in leaves)
