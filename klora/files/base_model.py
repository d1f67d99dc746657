"""For which base model a file was made: from its tensors first, from its metadata second.

A model fits a file if it has every layer of the file, in such a number of blocks and in such sizes. What no
model fits is unknown, never the nearest. Where several fit, metadata decide, then the number of the last
block, then what the models say about each other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from klora.files.canonical import GRAMMARS
from klora.files.models import MODELS, BaseModel, Layer
from klora.files.models.grammar import Found

UNKNOWN = "unknown"

_METADATA_KEYS = ("ss_base_model_version", "modelspec.architecture", "ss_sd_model_name", "modelspec.title")

#: Sizes below this are those of a small model for tests, and tell nothing.
_SMALLEST_REAL = 512

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Path:
    """How a file names a layer of the denoiser: without prefix and parameter, with dots or underscores."""

    text: str
    flat: bool

    @property
    def is_outside(self) -> bool:
        """Whether no number is in the name: then it is in no block, and tells no model from another."""
        return not any(word.isdigit() for word in re.split(r"[._]", self.text))

    def find(self, model: BaseModel) -> Found | None:
        """The layer of ``model`` that this is."""
        grammar = GRAMMARS[model.name]
        return grammar.find_flat(self.text) if self.flat else grammar.find(self.text)


@dataclass(frozen=True)
class Identified:
    """The base model's name or ``unknown``, and the model by whose tables the file can be read, if any."""

    name: str
    reading: BaseModel | None


def identify(
    shapes: Mapping[Path, Shape | None], components: Collection[str], metadata: Mapping[str, str]
) -> Identified:
    """The base model of a file from its denoiser's layers, the text encoders it has, and its metadata.

    ``shapes`` are those of dW, ``None`` for one that is not known.
    """
    said = _said(metadata)
    if not shapes:
        return Identified(_without_denoiser(components, said), None)
    fitting = [_Fit.of(model, shapes) for model in MODELS]
    known = [fit for fit in fitting if fit is not None and (fit.marked or _is_distinct(fit.model, said))]
    best = [fit for fit in known if fit.fits] or [fit for fit in known if fit.is_damaged]
    if not best:
        return Identified(UNKNOWN, None)
    left = _narrowed(best, said, components)
    name = left[0].model.name if len(left) == 1 else UNKNOWN
    return Identified(name, left[0].model)


def variant_of(model: BaseModel, metadata: Mapping[str, str], file: str) -> str | None:
    """The variant of ``model`` whose word stands in the metadata or in the name of the file."""
    said = " ".join((*(metadata.get(key, "") for key in _METADATA_KEYS), file)).lower()
    return next((name for name, words in model.variants if any(word in said for word in words)), None)


def _is_distinct(model: BaseModel, said: Sequence[str]) -> bool:
    return not model.marks or model.name in said


def _narrowed(fits: list[_Fit], said: Sequence[str], components: Collection[str]) -> list[_Fit]:
    """Those that remain after each question that at least one of them answers with yes."""
    second = "text_encoder_2"
    questions: tuple[Callable[[_Fit], bool], ...] = (
        lambda fit: fit.model.name in said,
        lambda fit: fit.marked,
        lambda fit: second not in components or second in fit.model.text_encoders,
        lambda fit: fit.is_whole,
    )
    for question in questions:
        fits = [fit for fit in fits if question(fit)] or fits
    names = {fit.model.name for fit in fits}
    return [fit for fit in fits if not names & set(fit.model.yields_to)] or fits


def _without_denoiser(components: Collection[str], said: Sequence[str]) -> str:
    """Only a text encoder's layers: the second one is that of SDXL."""
    if len(said) == 1:
        return said[0]
    return "SDXL" if "text_encoder_2" in components else UNKNOWN


def _said(metadata: Mapping[str, str]) -> list[str]:
    """The models that the metadata name; the longest of the models' words wins in each entry."""
    for key in _METADATA_KEYS:
        text = metadata.get(key, "").lower()
        lengths = {
            model.name: max((len(word) for word in model.words if word in text), default=0)
            for model in MODELS
        }
        longest = max(lengths.values())
        if longest:
            return [name for name, length in lengths.items() if length == longest]
    return []


@dataclass(frozen=True)
class _Fit:
    """How well a model, which has all layers of the file, fits their sizes."""

    model: BaseModel
    layers: int
    misfits: int
    wrong_leaves: int
    marked: bool
    is_whole: bool

    @property
    def fits(self) -> bool:
        """Whether no layer has other sizes in most blocks."""
        return not self.wrong_leaves

    @property
    def is_damaged(self) -> bool:
        """Whether a single layer of many is out of step: a damaged file of this model, not another model."""
        return self.misfits == 1 and self.layers > 2

    @classmethod
    def of(cls, model: BaseModel, shapes: Mapping[Path, Shape | None]) -> _Fit | None:
        """``None`` if the model lacks a layer or a block of the file."""
        wrong, all_leaves, deepest, patterns = Counter[str](), Counter[str](), dict[str, int](), set[str]()
        for path, shape in shapes.items():
            found = path.find(model)
            if found is None and path.is_outside:
                continue
            if found is None or not _is_in(found):
                return None
            patterns.add(found.layer.pattern)
            all_leaves[found.layer.leaf.name] += 1
            if shape is not None and not _is_of_size(found.layer, shape, model):
                wrong[found.layer.leaf.name] += 1
            if (found.layer.block.count or 0) > 1 and found.numbers:
                row = found.layer.block.name
                deepest[row] = max(deepest.get(row, 0), found.numbers[0])
        counts = {block.name: block.count for block in model.blocks}
        return cls(
            model,
            layers=len(shapes),
            misfits=wrong.total(),
            wrong_leaves=sum(2 * number > all_leaves[leaf] for leaf, number in wrong.items()),
            marked=any(mark in patterns for mark in model.marks),
            is_whole=bool(deepest) and all(counts[row] == last + 1 for row, last in deepest.items()),
        )


def _is_in(found: Found) -> bool:
    count = found.layer.block.count
    if count is None:
        return True
    return found.numbers[0] < count if found.numbers else count > 0


def _is_of_size(layer: Layer, shape: Shape, model: BaseModel) -> bool:
    """Whether the model's layer has these sizes, as far as they are told."""
    out, inside = layer.leaf.out, layer.leaf.inside
    if (
        isinstance(out, int | float)
        and isinstance(inside, int | float)
        and round(shape[0] * inside) != round(shape[1] * out)
    ):
        return False
    sides = ((shape[0], out), (shape[1], inside))
    return all(_is_real(size, multiple, layer.block.width, model) for size, multiple in sides)


def _is_real(size: int, multiple: float | str | None, width: str, model: BaseModel) -> bool:
    if multiple is None:
        return True
    group, times = (multiple, 1.0) if isinstance(multiple, str) else (width, float(multiple))
    real = model.widths.get(group)
    return real is None or size / times < _SMALLEST_REAL or round(size / times) in real
