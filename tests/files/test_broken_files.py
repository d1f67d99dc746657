"""Files with any defect, made by hypothesis: `read_lora` names the defect or gives the right dW.

Three generators: layers of any type with shapes and formats that may be wrong, bytes of a sound file that are
changed, and headers that are JSON of any kind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from klora.errors import LoraFileError
from klora.files import LoraFile, pair_layers, read_lora

from .spellings import SD1, UNET_DIALECTS, pairs, write

CASES = {"layers": 2000, "damage": 1700, "headers": 1100, "slow formula": 300}
QUICK = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck), "derandomize": True}

STEMS = (
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    "lora_unet_mid_block_resnets_0_conv1",
    "lora_te_text_model_encoder_layers_0_mlp_fc1",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "diffusion_model.double_blocks.1.img_attn.qkv",
    "lora_unet_single_blocks_0_linear1",
    "transformer.transformer_blocks.0.attn.to_q",
    "lora_unet_no_such_layer",
)
#: Parameters of a type -> letters of a sound shape: o(ut), i(n), r(ank), k(ernel), 1.
TYPES = (
    {"lora_down.weight": "ri", "lora_up.weight": "or", "alpha": ""},
    {"lora_A.weight": "ri", "lora_B.weight": "or"},
    {"lora_down.weight": "rikk", "lora_up.weight": "or11", "alpha": ""},
    {"lora_down.weight": "ri11", "lora_up.weight": "or11", "lora_mid.weight": "rrkk", "alpha": ""},
    {"hada_w1_a": "or", "hada_w1_b": "ri", "hada_w2_a": "or", "hada_w2_b": "ri", "alpha": ""},
    {"lokr_w1": "oi", "lokr_w2_a": "or", "lokr_w2_b": "ri", "alpha": ""},
    {"lokr_w1": "oi", "lokr_w2": "oi", "alpha": ""},
    {"diff": "oi"},
    {"a1.weight": "ir", "a2.weight": "ri", "b1.weight": "or", "b2.weight": "ri", "alpha": ""},
    {"w_norm": "o", "b_norm": "o"},
)
FORMATS = {
    "F32": np.float32,
    "F16": np.float16,
    "F64": np.float64,
    "I64": np.int64,
    "I8": np.int8,
    "BOOL": np.bool_,
}
VALUES = st.sampled_from([0.5, -1.0, 2.0, 0.0, float("nan"), float("inf"), 65504.0])


@contextmanager
def on_disk(content: bytes) -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "some lora.safetensors"
        path.write_bytes(content)
        yield path


def container(tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    header, body = {}, b""
    for key, (dtype, shape, raw) in tensors.items():
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


@st.composite
def layers(draw: Callable[..., object]) -> bytes:
    """One or two layers; now and then a parameter is missing, a size wrong, a format odd, a number not
    finite."""
    rarely = st.integers(0, 11).map(lambda number: number == 0)
    tensors = {}
    for stem in draw(st.lists(st.sampled_from(STEMS), min_size=1, max_size=2)):
        sizes = {
            "1": 1,
            "o": draw(st.sampled_from([6, 7, 21])),
            **{one: draw(st.integers(1, 4)) for one in "irk"},
        }
        for parameter, letters in draw(st.sampled_from(TYPES)).items():
            if draw(rarely):
                continue
            shape = tuple(draw(st.integers(0, 9)) if draw(rarely) else sizes[letter] for letter in letters)
            dtype = draw(st.sampled_from(sorted(FORMATS))) if draw(rarely) else "F32"
            value = draw(VALUES) if dtype[0] == "F" and draw(rarely) else 0.5
            filled = np.full(shape, value).astype(FORMATS[dtype])
            tensors[f"{stem}.{parameter}"] = (dtype, shape, filled.tobytes())
    return container(tensors)


def assert_right_or_named(path: Path) -> bool:
    """Whether the file was understood; if not, the error is one line that begins with the file."""
    try:
        file = read_lora(path)
        for layer in file.all_layers:
            if not layer.needs_base and math.prod(layer.shape) < 2**20:
                assert_right(file, layer.name)
        pair_layers(file, file)
    except LoraFileError as error:
        assert_named(error)
        return False
    return True


def assert_named(error: LoraFileError) -> None:
    """One line that names the file and the defect."""
    assert error.reason.startswith("some lora.safetensors: ")
    assert str(error).isprintable()
    assert error.file == "some lora.safetensors"
    assert error.defect


def assert_right(file: LoraFile, name: str) -> None:
    """dW of a plain LoRA equals a sum written out in Python; of all types it is finite and of its shape."""
    layer = {one.name: one for one in file.all_layers}[name]
    delta = layer.delta()
    assert tuple(delta.shape) == layer.shape
    assert bool(delta.isfinite().all())
    if set(layer.keys) <= {"lora_up.weight", "lora_down.weight", "alpha"}:
        up = layer.tensor("lora_up.weight").double().flatten(1).tolist()
        down = layer.tensor("lora_down.weight").double().flatten(1).tolist()
        scale = float(layer.tensor("alpha").reshape(())) / len(down) if "alpha" in layer.keys else 1.0
        # Damage makes numbers of any size; where fp32 itself runs out of range, there is no right answer.
        sizes = [abs(one) for row in (*up, *down, [scale]) for one in row if one]
        if not all(1e-9 < one < 1e9 for one in sizes):
            return
        places = [(row, column) for row in up for column in range(len(down[0]))]
        for found, (row, column) in zip(delta.flatten().tolist(), places, strict=True):
            terms = [scale * row[k] * down[k][column] for k in range(len(down))]
            # The error of a sum is measured by what was added up.
            assert abs(found - math.fsum(terms)) <= 1e-5 * math.fsum(map(abs, terms)) + 1e-6


@settings(max_examples=CASES["layers"], **QUICK)
@given(layers())
def test_layers_of_any_type(content: bytes) -> None:
    with on_disk(content) as path:
        assert_right_or_named(path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    widths = {name: (out, min(inside, 8)) for name, (out, inside) in SD1.items()}
    path = write(tmp_path_factory.mktemp("sound") / "x.safetensors", pairs(widths), UNET_DIALECTS["kohya"])
    return path.read_bytes()


@settings(max_examples=CASES["damage"], **QUICK)
@given(data=st.data())
def test_damage_to_a_sound_file(data: st.DataObject, sound: bytes) -> None:
    """A byte changed, a piece cut out or put in, the end lost: the header mostly, as there the danger is."""
    header = 8 + int.from_bytes(sound[:8], "little")
    at = data.draw(st.integers(0, header + 64))
    how = data.draw(st.sampled_from(["change", "cut", "insert", "end"]))
    piece = data.draw(st.binary(min_size=1, max_size=6))
    after = at + (len(piece) if how in ("change", "cut") else 0)
    middle = b"" if how == "cut" else piece
    content = sound[:at] if how == "end" else sound[:at] + middle + sound[after:]
    with on_disk(content) as path:
        assert_right_or_named(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "F4", "", "I64"]) | JSON,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | JSON,
    },
)
NAMES = st.sampled_from([f"{stem}.lora_up.weight" for stem in STEMS] + ["__metadata__", ""]) | st.text(
    max_size=20
)


@settings(max_examples=CASES["headers"], **QUICK)
@given(st.dictionaries(NAMES, ENTRIES | JSON, max_size=4) | JSON, st.binary(max_size=40))
def test_headers_of_any_kind(header: object, body: bytes) -> None:
    text = json.dumps(header).encode()
    with on_disk(len(text).to_bytes(8, "little") + text + body) as path:
        assert_right_or_named(path)


@settings(max_examples=CASES["slow formula"], **QUICK)
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_types_against_sums_written_out(out: int, inside: int, rank: int, a: int, b: int, seed: int) -> None:
    """LoHa and LoKr, element by element from their definitions."""
    random = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_"
    loha = {"hada_w1_a": some(out, rank), "hada_w1_b": some(rank, inside)}
    loha |= {"hada_w2_a": some(out, rank), "hada_w2_b": some(rank, inside), "alpha": torch.tensor(3.0)}
    lokr = {"lokr_w1": some(a, b), "lokr_w2_a": some(out, rank), "lokr_w2_b": some(rank, inside)}
    lokr |= {"alpha": torch.tensor(5.0)}
    tensors = {f"{stem}to_q.{key}": one for key, one in loha.items()}
    tensors |= {f"{stem[:-6]}attn2_to_q.{key}": one for key, one in lokr.items()}
    # Two attentions of different width in one block would be a defect, so each goes into a file of its own.
    for of in ("attn1", "attn2"):
        with on_disk(save({key: one for key, one in tensors.items() if of in key})) as path:
            (layer,) = read_lora(path).layers.values()
            found = layer.delta(dtype=torch.float64)
        for row in range(layer.shape[0]):
            for column in range(layer.shape[1]):
                if of == "attn1":
                    expected = 3 / rank * _dot(loha["hada_w1_a"], loha["hada_w1_b"], row, column)
                    expected *= _dot(loha["hada_w2_a"], loha["hada_w2_b"], row, column)
                else:
                    inner = _dot(lokr["lokr_w2_a"], lokr["lokr_w2_b"], row % out, column % inside)
                    expected = 5 / rank * float(lokr["lokr_w1"][row // out, column // inside]) * inner
                assert float(found[row, column]) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def _dot(first: torch.Tensor, second: torch.Tensor, row: int, column: int) -> float:
    return sum(float(first[row, k]) * float(second[k, column]) for k in range(second.shape[0]))


def test_the_generators_make_sound_files_too() -> None:
    """Without this, all cases could be refused and nothing shown."""
    understood: list[bool] = []

    @settings(max_examples=200, **QUICK)
    @given(layers())
    def count(content: bytes) -> None:
        with on_disk(content) as path:
            understood.append(assert_right_or_named(path))

    count()
    assert 0.15 < sum(understood) / len(understood) < 0.9
