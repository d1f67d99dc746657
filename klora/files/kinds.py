"""The types of LoRA: which parameters make one, what shapes they must have, and how dW is formed.

Everything that can be wrong is seen from the header's shapes, before a tensor is read. A check raises
``Defect``, which the layer turns into an error that names file and layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from klora.files import formulas
from klora.files.late_torch import Tensor

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Tensors = Mapping[str, Tensor]

#: Elements above which a dW is no layer of any model, but a small file that would fill the memory.
MOST_ELEMENTS = 2**29


class Defect(ValueError):  # noqa: N818 - it is not raised to users: it becomes a LoraFileError
    """Something is wrong with the shapes of a layer."""


@dataclass(frozen=True)
class Geometry:
    """Of one layer: the shape of dW, r for K (``None``: no rank), and what alpha is divided by (``None``: s
    = 1)."""

    shape: Shape
    rank: int | None
    divisor: int | None


@dataclass(frozen=True)
class Kind:
    """One type: it is recognised by ``required``, and may also have ``optional``."""

    name: str
    required: frozenset[str]
    optional: frozenset[str]
    geometry: Callable[[Shapes], Geometry]
    form: Callable[[Tensors, Tensor | None], Tensor]
    needs_base: bool = False


# --- LoRA, LoCon ----------------------------------------------------------------------------------


def _lora_geometry(shapes: Shapes) -> Geometry:
    up, down, mid = shapes["lora_up.weight"], shapes["lora_down.weight"], shapes.get("lora_mid.weight")
    _expect_matrix("lora_up", up)
    _expect_dimensions("lora_down", down)
    rank = down[0]
    _expect_rank(rank)
    if mid is None:
        _expect_equal("rank", ("lora_up", up[1]), ("lora_down", rank))
        kernel = down[2:] or ((1, 1) if len(up) == 4 else ())
        return Geometry((up[0], down[1], *kernel), rank, rank)
    _expect_matrix("lora_down", down)
    _expect_core("lora_mid", mid, up[1], rank)
    return Geometry((up[0], down[1], *mid[2:]), rank, rank)


def _lora(tensors: Tensors, _: Tensor | None) -> Tensor:
    up, down = tensors["lora_up.weight"], tensors["lora_down.weight"]
    if "lora_mid.weight" in tensors:
        return formulas.tucker(tensors["lora_mid.weight"], up.flatten(1), down.flatten(1))
    return formulas.product(up, down)


# --- LoHa -----------------------------------------------------------------------------------------


def _loha_geometry(shapes: Shapes) -> Geometry:
    first, second = (_loha_half(shapes, which) for which in "12")
    if first != second:
        raise Defect(f"the two factors have different shapes: {_text(first)} and {_text(second)}")
    rank = shapes["hada_w1_b"][0]
    return Geometry(first, rank, rank)


def _loha_half(shapes: Shapes, which: str) -> Shape:
    a, b, core = shapes[f"hada_w{which}_a"], shapes[f"hada_w{which}_b"], shapes.get(f"hada_t{which}")
    _expect_matrix(f"hada_w{which}_a", a, 2)
    _expect_matrix(f"hada_w{which}_b", b, 2)
    _expect_rank(b[0])
    if core is not None:
        _expect_core(f"hada_t{which}", core, a[0], b[0])
        return (a[1], b[1], *core[2:])
    _expect_equal("rank", (f"hada_w{which}_a", a[1]), (f"hada_w{which}_b", b[0]))
    return (a[0], b[1])


def _loha(tensors: Tensors, _: Tensor | None) -> Tensor:
    halves = []
    for which in "12":
        a, b, core = (tensors.get(f"hada_{one}") for one in (f"w{which}_a", f"w{which}_b", f"t{which}"))
        assert a is not None and b is not None  # noqa: PT018 - required by the table below
        halves.append(a @ b if core is None else formulas.tucker(core, a.T, b))
    return halves[0] * halves[1]


# --- LoKr -----------------------------------------------------------------------------------------


def _lokr_geometry(shapes: Shapes) -> Geometry:
    (a, b), first_rank = _lokr_factor(shapes, "1")[:2], shapes.get("lokr_w1_b", (None,))[0]
    second, second_rank = _lokr_factor(shapes, "2"), shapes.get("lokr_w2_b", (None,))[0]
    rank = second_rank if second_rank is not None else first_rank
    return Geometry((a * second[0], b * second[1], *second[2:]), rank, rank)


def _lokr_factor(shapes: Shapes, which: str) -> Shape:
    whole, a, b = (shapes.get(f"lokr_w{which}{end}") for end in ("", "_a", "_b"))
    core = shapes.get("lokr_t2") if which == "2" else None
    if whole is not None and a is None and b is None and core is None:
        if which == "1":
            _expect_matrix("lokr_w1", whole, 2)
        _expect_dimensions(f"lokr_w{which}", whole)
        return whole
    if whole is not None or a is None or b is None:
        raise Defect(f"lokr_w{which} must be there either whole or as the two factors _a and _b")
    _expect_matrix(f"lokr_w{which}_a", a, 2)
    _expect_matrix(f"lokr_w{which}_b", b, 2)
    _expect_rank(b[0])
    if core is not None:
        _expect_core("lokr_t2", core, a[0], b[0])
        return (a[1], b[1], *core[2:])
    _expect_equal("rank", (f"lokr_w{which}_a", a[1]), (f"lokr_w{which}_b", b[0]))
    return (a[0], b[1])


def _lokr(tensors: Tensors, _: Tensor | None) -> Tensor:
    return formulas.kronecker(lokr_factor(tensors, "1"), lokr_factor(tensors, "2"))


def lokr_factor(tensors: Tensors, which: str) -> Tensor:
    """w1 or w2 of a LoKr, whole."""
    if f"lokr_w{which}" in tensors:
        return tensors[f"lokr_w{which}"]
    a, b = tensors[f"lokr_w{which}_a"], tensors[f"lokr_w{which}_b"]
    if which == "2" and "lokr_t2" in tensors:
        return formulas.tucker(tensors["lokr_t2"], a.T, b)
    return a @ b


# --- Full difference, GLoRA -----------------------------------------------------------------------


def _full_geometry(shapes: Shapes) -> Geometry:
    _expect_dimensions("diff", shapes["diff"])
    return Geometry(shapes["diff"], None, None)


def _full(tensors: Tensors, _: Tensor | None) -> Tensor:
    return tensors["diff"]


_GLORA = frozenset({"a1.weight", "a2.weight", "b1.weight", "b2.weight"})


def _glora_geometry(shapes: Shapes) -> Geometry:
    for name in _GLORA:
        _expect_dimensions(name, shapes[name])
    a1, a2, b1, b2 = (shapes[f"{one}.weight"] for one in ("a1", "a2", "b1", "b2"))
    core = shapes.get("bm.weight")
    if glora_is_new(a1, a2, b1, b2):
        if core is not None:
            _expect_core("bm", core, b1[1], b2[0])
        out, inside, kernel, rank = b1[0], b2[1], core[2:] if core else b2[2:], a1[1]
    elif _old_glora(a1, a2, b1, b2) and core is None:
        out, inside, kernel, rank = b2[0], b1[1], b1[2:], b1[0]
    else:
        raise Defect(f"ranks or sizes differ: a1 {_text(a1)}, a2 {_text(a2)}, b1 {_text(b1)}, b2 {_text(b2)}")
    _expect_rank(rank)
    return Geometry((out, inside, *kernel), None, rank)


def glora_is_new(a1: Shape, a2: Shape, b1: Shape, b2: Shape) -> bool:
    """Today's orientation: b1 @ b2 and W @ a1 @ a2. The old one has b2 @ b1 and W @ a2 @ a1."""
    new = a1[1] == a2[0] and b1[1] == b2[0] and a1[0] == a2[1] == b2[1]
    # A square layer fits both readings, one of them with a rank above the layer's width.
    return new and (a1[0] >= a1[1] or not _old_glora(a1, a2, b1, b2))


def _old_glora(a1: Shape, a2: Shape, b1: Shape, b2: Shape) -> bool:
    return a1[0] == a2[1] and b1[0] == b2[1] and a1[1] == a2[0] == b1[1]


def _glora(tensors: Tensors, base: Tensor | None) -> Tensor:
    assert base is not None, "the layer asks for the base weight first"
    a1, a2, b1, b2 = (tensors[f"{one}.weight"] for one in ("a1", "a2", "b1", "b2"))
    if not glora_is_new(*(tuple(one.shape) for one in (a1, a2, b1, b2))):
        a1, a2, b1, b2 = a2, a1, b2, b1
    if "bm.weight" in tensors:
        added = formulas.tucker(tensors["bm.weight"], b1.flatten(1), b2.flatten(1))
    else:
        added = formulas.product(b1, b2)
    return formulas.glora(base, a1.flatten(1), a2.flatten(1), added)


# --- The table ------------------------------------------------------------------------------------

#: Beside a dW: what scales it, and what is added to the bias, which is left to the host.
BIASES = frozenset({"diff_b", "lora_bias", "bias"})
BESIDE = BIASES | {"alpha"}
#: What is a tensor of the model itself, or a difference of one, whatever its shape.
WHOLE = frozenset({"diff", "diff_b", "w_norm", "b_norm", "weight", "bias", "scale"})
_COMMON = BESIDE

KINDS: tuple[Kind, ...] = (
    Kind(
        "lora",
        frozenset({"lora_up.weight", "lora_down.weight"}),
        _COMMON | {"lora_mid.weight"},
        _lora_geometry,
        _lora,
    ),
    Kind(
        "loha",
        frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),
        _COMMON | {"hada_t1", "hada_t2"},
        _loha_geometry,
        _loha,
    ),
    Kind(
        "lokr",
        frozenset(),
        _COMMON | {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"},
        _lokr_geometry,
        _lokr,
    ),
    Kind("full", frozenset({"diff"}), _COMMON, _full_geometry, _full),
    Kind("glora", _GLORA, _COMMON | {"bm.weight"}, _glora_geometry, _glora, needs_base=True),
)

#: A parameter that gives a type away -> the type, for layers that are left to the host.
LEFT_TO_HOST: Mapping[str, str] = {
    "scale": "norm",
    "w_norm": "norm",
    "b_norm": "norm",
    "oft_blocks": "oft",
    "oft_diag": "oft",
    "oft_r": "oft",
    "oft_R": "oft",
    "boft_R": "boft",
    "boft_s": "boft",
    "on_input": "ia3",
    "ia3_l": "ia3",
    "lambda_layer": "t-lora",
    "reshape_weight": "embedder",
    "set_weight": "whole weight",
}

#: The magnitude of a DoRA, as LyCORIS and kohya store it (either axis) and as PEFT does (one per output).
MAGNITUDES = ("dora_scale", "magnitude")


def left_to_host(shapes: Shapes) -> str | None:
    """The type of a layer that K-LoRA leaves to the host, or ``None``."""
    for parameter, name in LEFT_TO_HOST.items():
        if parameter in shapes:
            # LyCORIS stores BOFT's blocks in one tensor of four dimensions, OFT's in three.
            return "boft" if parameter == "oft_blocks" and len(shapes[parameter]) == 4 else name
    if set(shapes) <= BIASES:
        return "bias"
    if set(shapes) <= {"weight", "bias"}:
        return "norm" if len(shapes["weight"]) == 1 else "whole weight"
    return "norm" if "diff" in shapes and len(shapes["diff"]) == 1 else None


def kind_of(shapes: Shapes) -> Kind:
    """The type that these parameters make, a DoRA's magnitude aside; raises `Defect` if they make none."""
    found = frozenset(shapes) - set(MAGNITUDES)
    for kind in KINDS:
        marks = kind.required or (kind.optional - _COMMON)
        if not found & marks:
            continue
        if missing := sorted(kind.required - found):
            have = sorted(found & marks)
            raise Defect(f"{_names(have)} without {_names(missing)}")
        if strange := sorted(found - kind.required - kind.optional):
            raise Defect(f"{_names(strange)} beside {kind.name}, which is not understood")
        return kind
    raise Defect(f"{_names(sorted(shapes))} alone is no LoRA")


def dora_per_output(magnitude: Shape, shape: Shape, parameter: str) -> bool:
    """Whether a DoRA's magnitude is one per output (else one per input); raises `Defect` if it is neither."""
    count = math.prod(magnitude)
    if count == shape[0] and (parameter == "magnitude" or len(magnitude) == 1 or magnitude[0] == count):
        return True
    if parameter == "dora_scale" and count == shape[1] and len(magnitude) > 1 and magnitude[1] == count:
        return False
    raise Defect(
        f"its DoRA magnitude has shape {_text(magnitude)}, which fits neither side of {_text(shape)}"
    )


# --- Checks ---------------------------------------------------------------------------------------


def _expect_dimensions(name: str, shape: Shape) -> None:
    if len(shape) not in (2, 4, 5):  # five are a convolution over time, in an embedder
        raise Defect(f"{name} has shape {_text(shape)} instead of two or four dimensions")
    if 0 in shape:
        raise Defect(f"{name} has rank 0 or no elements (shape {_text(shape)})")


def _expect_matrix(name: str, shape: Shape, dimensions: int = 0) -> None:
    _expect_dimensions(name, shape)
    if (dimensions and len(shape) != dimensions) or any(one != 1 for one in shape[2:]):
        raise Defect(f"{name} has shape {_text(shape)} where a matrix is expected")


def _expect_core(name: str, shape: Shape, first: int, second: int) -> None:
    if len(shape) not in (4, 5) or shape[:2] != (first, second) or 0 in shape:
        raise Defect(f"{name} has shape {_text(shape)} where the ranks are {first} and {second}")


def _expect_rank(rank: int) -> None:
    if rank < 1:
        raise Defect("rank 0")


def _expect_equal(what: str, first: tuple[str, int], second: tuple[str, int]) -> None:
    if first[1] != second[1]:
        raise Defect(f"{what}s differ: {first[0]} has {first[1]}, {second[0]} has {second[1]}")


def _names(parameters: list[str]) -> str:
    return ", ".join(one.removesuffix(".weight") for one in parameters)


def _text(shape: Shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
