"""One layer of a LoRA file: its type, the shape of dW, its rank, and dW itself when it is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from klora.errors import LoraFileError
from klora.files import formulas
from klora.files.block_form import BlockForm
from klora.files.canonical import is_attention, kernel_of, parts_of
from klora.files.container import FLOATS, Container, Entry
from klora.files.defects import UnknownDialectError, defect_error
from klora.files.kinds import (
    BESIDE,
    MAGNITUDES,
    MOST_ELEMENTS,
    Defect,
    Geometry,
    Kind,
    Shape,
    dora_per_output,
    kind_of,
)
from klora.files.late_torch import Tensor, torch
from klora.files.row_blocks import BLOCK_ELEMENTS, block_bounds, lokr_singular_values

Rows = tuple[tuple[int, int], ...]

#: Parameters of a plain LoRA.
_PLAIN = {"lora_up.weight", "lora_down.weight"}

#: Well below the largest fp32.
_SAFE = 1e38

_REMEDY = "use another version of this file"


@dataclass(frozen=True, eq=False)
class LoraLayer:
    """One layer of one file. Nothing but shapes is in memory until `delta` is called.

    ``shape`` is that of dW: ``(out, in)`` or ``(out, in, kh, kw)``. ``stored_rank`` is the rank of the whole
    layer as the file stores it, ``None`` for a type that has none. ``keys`` leads from parameters in kohya's
    and LyCORIS's spelling to keys of the file. ``rows`` is set for a part of a fused projection: the rows of
    the whole dW that it is.
    """

    name: str
    kind: str
    shape: Shape
    stored_rank: int | None
    needs_base: bool
    keys: Mapping[str, str]
    container: Container
    type: Kind
    divisor: int | None
    declared_scale: float | None = None
    rows: Rows | None = None
    whole_shape: Shape = ()
    whole_name: str = ""

    @property
    def attention(self) -> bool:
        """Whether this is a linear of an attention."""
        return is_attention(self.name)

    @cached_property
    def rank(self) -> int | None:
        """r for K, or ``None`` for a type that has none.

        Where split projections were stored as a fused one, their factors stand on a block diagonal: a part
        has only the columns that are not zero in its rows. 0 for a part that was not trained.
        """
        if self.rows is None or self.stored_rank is None or "lora_up.weight" not in self.keys:
            return self.stored_rank
        up = take_rows(self.tensor("lora_up.weight").float().flatten(1), self.rows)
        return int((up != 0).any(dim=0).sum())

    @property
    def is_absent(self) -> bool:
        """Whether this is a part that a fused layer holds only because it must: its dW is zero."""
        if self.rows is None or self.needs_base:
            return False
        if "diff" in self.keys:
            return not bool(take_rows(self.tensor("diff").float(), self.rows).any())
        return self.rank == 0

    @property
    def dtypes(self) -> frozenset[str]:
        """Number formats of the layer's weights, as safetensors calls them: ``F16``."""
        weights = (key for parameter, key in self.keys.items() if parameter != "alpha")
        return frozenset(self.container.entries[key].dtype for key in weights)

    @property
    def alpha(self) -> float | None:
        """alpha as the file has it, or ``None``; reads one number. Raises `LoraFileError` if it is not
        finite."""
        if "alpha" not in self.keys:
            return None
        return self._checked_alpha(self.container.read_number(self.keys["alpha"]))

    def _checked_alpha(self, alpha: float) -> float:
        if not math.isfinite(alpha):
            raise self.error("its alpha is NaN or infinite", _REMEDY)
        return alpha

    @property
    def scale(self) -> float:
        """s in dW = s * up @ down: alpha / r; without alpha what the file's metadata declare, else 1."""
        return self._scale(self.alpha)

    def _scale(self, alpha: float | None) -> float:
        if alpha is None:
            return 1.0 if self.declared_scale is None else self.declared_scale
        return 1.0 if self.divisor is None else alpha / self.divisor

    def weights_and_scale(self) -> tuple[dict[str, Tensor], float]:
        """All parameters of dW as they are in the file, and `scale`; the file is opened once."""
        wanted = [parameter for parameter in self.keys if parameter == "alpha" or parameter not in BESIDE]
        tensors = self.container.read_all([self.keys[parameter] for parameter in wanted])
        weights = dict(zip(wanted, tensors, strict=True))
        alpha = weights.pop("alpha", None)
        return weights, self._scale(None if alpha is None else self._checked_alpha(float(alpha.double())))

    def tensor(self, parameter: str) -> Tensor:
        """A parameter as it is in the file, on the CPU."""
        return self.container.read(self.keys[parameter])

    def delta(
        self,
        base: Tensor | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """dW, with alpha / rank, of shape ``shape``.

        ``base`` is the layer's clean weight W; types with ``needs_base`` (GLoRA, DoRA) cannot do without.
        For a part of a fused projection it is the weight of the whole one. Computed in fp32, or fp64 if
        ``dtype`` is, whatever the file's format. Raises `LoraFileError` for NaN or Inf, a missing or wrong
        ``base``, and if the file was replaced.
        """
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        weights = self._weights(device, wide)
        rows = self._cut_early(weights)
        base = self._checked_base(base, device, wide)
        scale = self.scale
        finite = _surely_finite(weights, scale)
        if set(weights) == _PLAIN:
            # Small factors instead of a large product: one pass over dW less.
            weights["lora_up.weight"] = weights["lora_up.weight"] * scale
            delta = self.type.form(weights, base)
        else:
            delta = self.type.form(weights, base) * scale
        delta = delta.reshape(self.whole_shape if rows is not None else self.shape)
        for parameter in MAGNITUDES:
            if parameter in weights and base is not None:
                per_output = dora_per_output(tuple(weights[parameter].shape), self._full_shape, parameter)
                delta = formulas.decomposed(base, delta, weights[parameter], per_output=per_output)
        if rows is not None:
            delta = take_rows(delta, rows)
        # A sum is NaN or Inf if any element is, and takes a tenth of the time of a test of each.
        if not finite and not math.isfinite(float(delta.sum())):
            raise self._not_finite()
        return delta.to(dtype or wide)

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """(s * up, down) in fp32 with dW = up @ down, for a plain LoRA; ``None`` for every other type.

        up is ``[out, r]`` (with trailing ones for a convolution), down ``[r, in]`` or ``[r, in, h, w]``.
        """
        if set(self.keys) - BESIDE != _PLAIN:
            return None
        up, down = (self.tensor(f"lora_{which}.weight").to(torch.float32) for which in ("up", "down"))
        if self.rows is not None:
            up = take_rows(up, self.rows)
        return up * self.scale, down

    def bias_delta(self) -> Tensor | None:
        """What the layer adds to its bias, ``[out]`` in fp32, or ``None``. alpha is no part of it, as in the
        hosts."""
        if "diff_b" not in self.keys:
            return None
        bias = self.tensor("diff_b").to(torch.float32).flatten()
        return bias if self.rows is None else take_rows(bias, self.rows)

    def delta_blocks(
        self,
        base: Tensor | None = None,
        *,
        device: str | torch.device = "cpu",
        elements: int = BLOCK_ELEMENTS,
    ) -> Iterator[Tensor]:
        """dW in fp32 as blocks of rows of about ``elements`` elements each, from the first row to the last.

        The same numbers as `delta`, with as little memory as one block and the layer's own tensors need.
        ``base`` and errors as there.
        """
        weights = self._weights(device, torch.float32)
        base = self._checked_base(base, device, torch.float32)
        magnitude = next(((one, weights.pop(one)) for one in MAGNITUDES if one in weights), None)
        width = math.prod(self.shape[1:])
        form = BlockForm(self.type, weights, self.scale, self._full_shape, base, magnitude)
        for first, last in self.rows or ((0, self.shape[0]),):
            for start, stop in block_bounds(last - first, width, elements):
                block = form.rows(first + start, first + stop)
                if not math.isfinite(float(block.sum())):
                    raise self._not_finite()
                yield block

    def energy_rank(self, share: float) -> int | None:
        """The smallest rank that holds ``share`` of the squared Frobenius norm of dW, where the factors tell
        it at once: for a LoKr. ``None`` for all others."""
        if self.type.name != "lokr" or self.needs_base or (self.rows and len(self.rows) != 1):
            return None
        values = lokr_singular_values(
            self._weights("cpu", torch.float32), None if self.rows is None else self.rows[0]
        )
        if values is None:
            return None
        energies = values.square().sort(descending=True).values.cumsum(0)
        return int((energies < share * energies[-1]).sum()) + 1 if energies[-1] > 0 else 1

    def _weights(self, device: str | torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        return {
            parameter: self.tensor(parameter).to(device=device, dtype=dtype)
            for parameter in self.keys
            if parameter not in BESIDE
        }

    def part(self, name: str, rows: Rows) -> LoraLayer:
        """The part of this fused layer that is ``rows`` of it."""
        shape = (sum(stop - start for start, stop in rows), *self.shape[1:])
        return replace(self, name=name, shape=shape, rows=rows, whole_shape=self.shape, whole_name=self.name)

    def parts(self) -> tuple[LoraLayer, ...]:
        """The projections that are fused in this layer, or the layer itself if it is not fused."""
        found = () if self.rows is not None else parts_of(self.name, self.shape[0])
        return tuple(self.part(one.name, one.rows) for one in found) or (self,)

    def siblings(self) -> tuple[LoraLayer, ...]:
        """All parts of the fused layer that this is a part of, itself among them."""
        whole = replace(self, name=self.whole_name, shape=self.whole_shape, rows=None)
        return whole.parts()

    def with_declared_scale(self, scale: float | None) -> LoraLayer:
        """The same layer with a scale from the file's metadata, for want of an alpha."""
        return replace(self, declared_scale=scale)

    def error(self, defect: str, remedy: str) -> LoraFileError:
        """The error for a defect of this layer."""
        return defect_error(self.container.path.name, defect, remedy, layer=self.name)

    @property
    def _full_shape(self) -> Shape:
        return self.whole_shape or self.shape

    def _cut_early(self, weights: dict[str, Tensor]) -> Rows | None:
        """Cut the rows from ``lora_up`` where that is the same; else return the rows to be cut from dW."""
        if self.rows is None or set(weights) != _PLAIN:
            return self.rows
        weights["lora_up.weight"] = take_rows(weights["lora_up.weight"], self.rows)
        return None

    def _checked_base(
        self, base: Tensor | None, device: str | torch.device, dtype: torch.dtype
    ) -> Tensor | None:
        if base is None:
            if self.needs_base:
                raise self.error(
                    f"a {self.kind} layer depends on the model's own weight, which is not at hand here",
                    "choose this LoRA in the WebUI with its model loaded, or plan it on the command line "
                    "with --base-model CHECKPOINT",
                )
            return None
        wanted = self._full_shape if self.needs_base else self.shape
        if base.dim() < 2 or base.shape[0] != wanted[0] or base.numel() != math.prod(wanted):
            sizes = f"it is made for {list(wanted)}, the model has {list(base.shape)}"
            raise self.error(
                f"wrong input or output size: {sizes}", "use a LoRA that was trained for this model"
            )
        return base.to(device=device, dtype=dtype).reshape(wanted) if self.needs_base else None

    def _not_finite(self) -> LoraFileError:
        # Asked of the file's own numbers: here the scale may have been multiplied in. fp8 knows no isfinite.
        weights = (one for one in self.keys if one not in BESIDE)
        bad = next((one for one in weights if not bool(self.tensor(one).double().isfinite().all())), None)
        where = f"{bad.removesuffix('.weight')} holds" if bad else "its product has"
        return self.error(f"{where} NaN or infinite values", _REMEDY)


def _surely_finite(weights: Mapping[str, Tensor], scale: float) -> bool:
    """Whether the factors alone show that their product is finite: then no pass over dW is needed to see
    it."""
    if set(weights) != _PLAIN:
        return False
    largest = [float(torch.linalg.vector_norm(one, ord=math.inf)) for one in weights.values()]
    # A NaN among the factors makes this comparison false, as it should.
    return math.prod(largest) * weights["lora_down.weight"].shape[0] * abs(scale) < _SAFE


def take_rows(matrix: Tensor, rows: Rows) -> Tensor:
    """The given row ranges of ``matrix``, one after the other; a view where it is one range."""
    ranges = [matrix[start:stop] for start, stop in rows]
    return ranges[0] if len(ranges) == 1 else torch.cat(ranges)


def build_layer(
    name: str, keys: Mapping[str, str], container: Container, declared_scale: float | None = None
) -> LoraLayer:
    """Check the shapes and formats of one layer's tensors; raises `LoraFileError` naming file, layer,
    defect."""
    entries = {parameter: container.entries[key] for parameter, key in keys.items()}
    try:
        _check_formats(entries)
        shapes = {parameter: entry.shape for parameter, entry in entries.items()}
        kind = kind_of(shapes)
        geometry = _unflattened(kind.geometry(shapes), name)
        _check_amount(geometry.shape)
        magnitude = _magnitude(kind, shapes, geometry.shape)
    except ValueError as defect:
        raise defect_error(container.path.name, str(defect), _REMEDY, layer=name) from defect
    _check_parts(name, geometry.shape[0], container.path.name)
    return LoraLayer(
        name=name,
        kind="dora" if magnitude is not None else _kind_name(kind, geometry, shapes),
        shape=geometry.shape,
        stored_rank=geometry.rank,
        needs_base=kind.needs_base or magnitude is not None,
        keys=dict(keys),
        container=container,
        type=kind,
        divisor=geometry.divisor,
        declared_scale=declared_scale,
    )


def _check_parts(name: str, rows: int, file: str) -> None:
    try:
        parts_of(name, rows)
    except ValueError as error:
        remedy = "it may be for a model that K-LoRA does not know: report this file"
        raise defect_error(file, str(error), remedy, layer=name, error=UnknownDialectError) from error


def _check_formats(entries: Mapping[str, Entry]) -> None:
    for parameter, entry in entries.items():
        # Trainers have saved alpha, a single number, as an integer.
        if parameter == "alpha":
            if entry.elements != 1 or entry.dtype == "BOOL":
                raise Defect("its alpha is not one number")
        elif entry.dtype not in FLOATS:
            raise Defect(f"{parameter} has the number format {entry.dtype}, not a floating-point one")


def _check_amount(shape: Shape) -> None:
    if math.prod(shape) > MOST_ELEMENTS:
        raise Defect(f"its dW would be {list(shape)}, larger than any layer of any model")


def _magnitude(kind: Kind, shapes: Mapping[str, Shape], shape: Shape) -> str | None:
    """The parameter that makes a layer a DoRA, or ``None``; raises `Defect` if it fits neither side."""
    found = [one for one in MAGNITUDES if one in shapes]
    if not found:
        return None
    if len(found) > 1:
        raise Defect("it has two DoRA magnitudes")
    if kind.name not in ("lora", "loha", "lokr"):
        raise Defect(f"a DoRA magnitude beside {kind.name}, which is not understood")
    dora_per_output(shapes[found[0]], shape, found[0])
    return found[0]


def _unflattened(geometry: Geometry, name: str) -> Geometry:
    """LoHa, LoKr and PEFT store a convolution as a matrix: give it back the kernel that the name tells."""
    kernel = kernel_of(name)
    if kernel is None or len(geometry.shape) != 2 or geometry.shape[1] % math.prod(kernel):
        return geometry
    out, flat = geometry.shape
    return replace(geometry, shape=(out, flat // math.prod(kernel), *kernel))


def _kind_name(kind: Kind, geometry: Geometry, shapes: Mapping[str, Shape]) -> str:
    """LoCon is LoRA on a convolution with a kernel; a 1 x 1 one is a linear in all but name."""
    spatial = "lora_mid.weight" in shapes or any(one != 1 for one in geometry.shape[2:])
    return "locon" if kind.name == "lora" and spatial else kind.name
