"""Every defect that people meet is refused in one sentence with the file, the layer, the defect and a
remedy."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from klora.errors import LoraFileError
from klora.files import ReplacedFileError, read_lora

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
STEM = "lora_unet_mid_block_attentions_0_transformer_blocks_0"
UP, DOWN, ALPHA = (f"{STEM}_attn1_to_q.{one}" for one in ("lora_up.weight", "lora_down.weight", "alpha"))


def sound() -> dict[str, Tensor]:
    """A LoRA on the four projections of an attention; a test breaks the first."""
    tensors = {}
    for leaf in ("to_q", "to_k", "to_v", "to_out_0"):
        tensors[f"{STEM}_attn1_{leaf}.lora_up.weight"] = torch.ones(8, 2)
        tensors[f"{STEM}_attn1_{leaf}.lora_down.weight"] = torch.ones(2, 8)
        tensors[f"{STEM}_attn1_{leaf}.alpha"] = torch.tensor(1.0)
    return tensors


def refusal(path: Path) -> LoraFileError:
    with pytest.raises(LoraFileError) as caught:
        read_lora(path)
    return caught.value


def raw(path: Path, header: object, body: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


SHAPES = {
    "rank 0": ({UP: torch.ones(8, 0), DOWN: torch.ones(0, 8)}, "rank 0"),
    "up without down": ({UP: torch.ones(8, 2), DOWN: None}, "lora_up without lora_down"),
    "down without up": ({UP: None}, "lora_down without lora_up"),
    "ranks differ": ({UP: torch.ones(8, 3)}, "ranks differ: lora_up has 3, lora_down has 2"),
    "wrong input size": ({DOWN: torch.ones(2, 6)}, "wrong input size 6 where the rest of the file says 8"),
    "wrong output size": ({UP: torch.ones(10, 2)}, "wrong output size 10 where the rest of the file says 8"),
    "integers": ({DOWN: torch.ones(2, 8, dtype=torch.int8)}, "number format I8, not a floating-point one"),
    "one dimension": ({DOWN: torch.ones(8)}, "shape [8] instead of two or four dimensions"),
    "alpha as vector": ({ALPHA: torch.ones(3)}, "alpha is not one number"),
    "alpha as truth": ({ALPHA: torch.tensor(True)}, "alpha is not one number"),
    "two types at once": ({f"{STEM}_attn1_to_q.hada_w1_a": torch.ones(8, 2)}, "hada_w1_a beside lora"),
    "DoRA of no side": ({f"{STEM}_attn1_to_q.dora_scale": torch.ones(5, 1)}, "fits neither side of [8, 8]"),
    "memory bomb": ({UP: torch.ones(40000, 2), DOWN: torch.ones(2, 40000)}, "larger than any layer"),
    "kernel in up": ({UP: torch.ones(8, 2, 3, 3)}, "where a matrix is expected"),
    "only alpha": ({UP: None, DOWN: None}, "alpha alone is no LoRA"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_shapes(case: str, tmp_path: Path) -> None:
    changes, defect = SHAPES[case]
    tensors = {key: one for key, one in {**sound(), **changes}.items() if one is not None}
    save_file(tensors, tmp_path / "bad.safetensors")
    error = refusal(tmp_path / "bad.safetensors")
    assert defect in str(error)
    assert error.reason.startswith(f"bad.safetensors: layer {BLOCK}.attn1.to_q: ")
    assert (error.file, error.layer) == ("bad.safetensors", f"{BLOCK}.attn1.to_q")
    assert error.defect is not None and defect in error.defect  # noqa: PT018
    assert "; " in str(error) and "\n" not in str(error)  # noqa: PT018


@pytest.mark.parametrize(
    ("parameters", "defect"),
    [
        ({"hada_w1_a": (8, 2), "hada_w1_b": (2, 8), "hada_w2_a": (8, 2)}, "without hada_w2_b"),
        (
            {"hada_w1_a": (8, 2), "hada_w1_b": (3, 8), "hada_w2_a": (8, 2), "hada_w2_b": (2, 8)},
            "ranks differ",
        ),
        (
            {"hada_w1_a": (8, 2), "hada_w1_b": (2, 8), "hada_w2_a": (8, 2), "hada_w2_b": (2, 9)},
            "different shapes",
        ),
        ({"lokr_w1": (2, 2)}, "lokr_w2 must be there either whole"),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (4, 1), "lokr_w2_b": (2, 4)}, "ranks differ"),
        ({"lokr_w1": (2, 2), "lokr_w2": (4, 4), "lokr_w2_a": (4, 1)}, "either whole or as the two"),
        ({"a1.weight": (8, 2), "a2.weight": (2, 8), "b1.weight": (8, 2)}, "without b2"),
        (
            {"a1.weight": (8, 2), "a2.weight": (3, 8), "b1.weight": (8, 2), "b2.weight": (2, 8)},
            "sizes differ",
        ),
        ({"diff": (8, 0)}, "no elements"),
        ({"diff": (8, 8), "dora_scale": (8, 1)}, "a DoRA magnitude beside full"),
        (
            {
                "lora_up.weight": (8, 2),
                "lora_down.weight": (2, 8),
                "dora_scale": (8, 1),
                "lora_magnitude_vector": (3,),
            },
            "two DoRA magnitudes",
        ),
        (
            {"lora_up.weight": (8, 2), "lora_down.weight": (2, 8), "lora_mid.weight": (2, 3, 3, 3)},
            "ranks are 2 and 2",
        ),
    ],
)
def test_shapes_of_other_types(parameters: dict[str, tuple[int, ...]], defect: str, tmp_path: Path) -> None:
    tensors = {f"{STEM}_attn1_to_q.{key}": torch.ones(shape) for key, shape in parameters.items()}
    save_file(tensors, tmp_path / "bad.safetensors")
    error = refusal(tmp_path / "bad.safetensors")
    assert defect in str(error)
    assert error.layer == f"{BLOCK}.attn1.to_q"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", [UP, DOWN, ALPHA])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_nan_and_inf(value: float, key: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {name: one.to(dtype) for name, one in sound().items()}
    tensors[key].view(-1)[-1] = value
    save_file(tensors, tmp_path / "bad.safetensors")
    file = read_lora(tmp_path / "bad.safetensors")
    for ask in (file.layers[f"{BLOCK}.attn1.to_q"].delta, file.verify):
        with pytest.raises(LoraFileError, match="NaN or infinite") as caught:
            ask()
        assert (caught.value.file, caught.value.layer) == ("bad.safetensors", f"{BLOCK}.attn1.to_q")
    assert bool(file.layers[f"{BLOCK}.attn1.to_k"].delta().isfinite().all())


def test_a_product_that_overflows(tmp_path: Path) -> None:
    huge = {key: one * 1e25 for key, one in sound().items()}
    save_file(huge, tmp_path / "bad.safetensors")
    layer = next(iter(read_lora(tmp_path / "bad.safetensors").layers.values()))
    with pytest.raises(LoraFileError, match="its product has NaN or infinite values"):
        layer.delta()


def test_duplicate_targets_in_two_namings(tmp_path: Path) -> None:
    tensors = sound()
    tensors["lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q.lora_up.weight"] = torch.ones(8, 2)
    save_file(tensors, tmp_path / "bad.safetensors")
    error = refusal(tmp_path / "bad.safetensors")
    assert "duplicate target" in str(error)
    assert error.layer == f"{BLOCK}.attn1.to_q"


def test_a_part_beside_its_fused_projection(tmp_path: Path) -> None:
    tensors = {}
    for module, rows in (("double_blocks.0.img_attn.qkv", 18), ("transformer_blocks.0.attn.to_k", 6)):
        tensors[f"diffusion_model.{module}.lora_A.weight"] = torch.ones(2, 6)
        tensors[f"diffusion_model.{module}.lora_B.weight"] = torch.ones(rows, 2)
    save_file(tensors, tmp_path / "bad.safetensors")
    assert "to_k is there twice, once inside a fused projection" in str(refusal(tmp_path / "bad.safetensors"))


def test_a_fused_projection_that_cannot_be_divided(tmp_path: Path) -> None:
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    save_file(
        {f"{stem}.lora_down.weight": torch.ones(2, 6), f"{stem}.lora_up.weight": torch.ones(17, 2)},
        tmp_path / "bad.safetensors",
    )
    assert "17 output rows cannot be divided by 3" in str(refusal(tmp_path / "bad.safetensors"))


CONTAINERS = {
    "a web page": (b"<!DOCTYPE html><html><body>Sign in</body></html>" * 9, "web page"),
    "a pickle": (pickle.dumps({"a": 1}), "pickle"),
    "a zip": (b"PK\x03\x04" + b"0" * 99, "zip or PyTorch file"),
    "a JSON message": (b'{"error": "not found"}', "JSON text"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
    "a GGUF file": (b"GGUF" + b"\3" * 60, "GGUF"),
    "nothing": (b"", "empty"),
    "five bytes": (b"\1\2\3\4\5", "truncated"),
    "zeros": (b"\0" * 64, "not sound JSON"),
    "a huge header": ((2**40).to_bytes(8, "little") + b"{}", "truncated or is not safetensors"),
    "a header over the limit": (
        (33 * 2**20).to_bytes(8, "little") + b" " * (33 * 2**20),
        "more than any LoRA's",
    ),
}


@pytest.mark.parametrize("case", CONTAINERS)
def test_what_is_no_safetensors_file(case: str, tmp_path: Path) -> None:
    content, defect = CONTAINERS[case]
    (tmp_path / "bad.safetensors").write_bytes(content)
    error = refusal(tmp_path / "bad.safetensors")
    assert defect in str(error)
    assert error.file == "bad.safetensors"


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HEADERS = {
    "no tensors": ({}, "no tensor"),
    "not an object": ([1], "not a JSON object"),
    "not UTF-8": (b'{"\xff": 1}', "not sound JSON"),
    "too deep": (b"[" * 100_000, "not sound JSON"),
    "the same name twice": (b'{"a": 1, "a": 2}', "names a twice"),
    "metadata of numbers": ({"__metadata__": {"a": 1}, "x": ENTRY}, "metadata is not a table of texts"),
    "no dtype": ({"x": {"shape": [1], "data_offsets": [0, 4]}}, "describes x wrongly"),
    "negative shape": ({"x": {**ENTRY, "shape": [-1]}}, "describes x wrongly"),
    "shape of truths": ({"x": {**ENTRY, "shape": [True]}}, "describes x wrongly"),
    "endless number": (b'{"x": ' + b"9" * 9999 + b"}", "not sound JSON"),
    "unknown dtype": ({"x": {**ENTRY, "dtype": "F4"}}, "number format F4"),
    "beyond the end": ({"x": {**ENTRY, "shape": [100], "data_offsets": [0, 400]}}, "damaged: it ends after"),
    "wrong size": ({"x": {**ENTRY, "shape": [2]}}, "size that does not fit its shape"),
    "backwards": ({"x": {**ENTRY, "data_offsets": [4, 0]}}, "size that does not fit its shape"),
    "overlap": ({"x": ENTRY, "y": ENTRY}, "y overlaps another tensor"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers(case: str, tmp_path: Path) -> None:
    header, defect = HEADERS[case]
    assert defect in str(refusal(raw(tmp_path / "bad.safetensors", header, b"\0" * 8)))


def test_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    save_file(sound(), path)
    path.write_bytes(path.read_bytes()[:-1])
    size = path.stat().st_size
    assert f"it is damaged: it ends after {size} of {size + 1} bytes" in str(refusal(path))


def test_names_of_files(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"")
    assert "only .safetensors files are read" in str(refusal(tmp_path / "x.pt"))
    assert "no such file" in str(refusal(tmp_path / "absent.safetensors"))
    (tmp_path / "folder.safetensors").mkdir()
    assert "it is a folder" in str(refusal(tmp_path / "folder.safetensors"))
    assert "cannot be opened" in str(refusal(tmp_path / "a\0b.safetensors"))


def test_symlinks_and_pipes(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").symlink_to(tmp_path / "b.safetensors")
    (tmp_path / "b.safetensors").symlink_to(tmp_path / "a.safetensors")
    assert "cannot be opened" in str(refusal(tmp_path / "a.safetensors"))
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "not a regular file" in str(refusal(tmp_path / "pipe.safetensors"))
    save_file(sound(), tmp_path / "real.safetensors")
    (tmp_path / "good.safetensors").symlink_to(tmp_path / "real.safetensors")
    assert len(read_lora(tmp_path / "good.safetensors").layers) == 4


@pytest.mark.parametrize("how", ["replaced", "rewritten", "truncated", "removed"])
def test_a_file_that_changes_between_reading_and_use(how: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(sound(), path)
    file = read_lora(path)
    layer = next(iter(file.layers.values()))
    before = layer.delta()
    if how == "replaced":
        save_file(sound(), tmp_path / "new.safetensors")
        (tmp_path / "new.safetensors").replace(path)
    elif how == "rewritten":
        path.write_bytes(path.read_bytes())
        os.utime(path, ns=(1, 1))
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    else:
        path.unlink()
    for ask in (layer.delta, file.verify, lambda: file.content_hash):
        with pytest.raises(
            ReplacedFileError, match=r"x\.safetensors: it (was replaced|can no longer be read)"
        ):
            ask()
    if how in ("replaced", "rewritten"):
        again = read_lora(path)
        assert again.identity != file.identity
        assert torch.equal(again.layers[layer.name].delta(), before)


def test_terminal_escapes_in_names_are_not_shown(tmp_path: Path) -> None:
    save_file(
        {"\x1b[31mred\x07.lora_up.weight": torch.ones(1, 1), "a" * 5000: torch.ones(1)},
        tmp_path / "x.safetensors",
    )
    message = str(refusal(tmp_path / "x.safetensors"))
    assert message.isprintable()
    assert len(message) < 700


def test_an_adapter_configuration_that_is_broken(tmp_path: Path) -> None:
    tensors = {f"unet.{BLOCK}.attn1.to_q.lora_{one}.weight": torch.ones(4, 4) for one in "AB"}
    for text, defect in (
        ("{", "not sound JSON"),
        ("[]", "not a JSON object"),
        ('{"unet.lora_alpha": "x"}', "no number"),
    ):
        save_file(tensors, tmp_path / "x.safetensors", metadata={"lora_adapter_metadata": text})
        assert defect in str(refusal(tmp_path / "x.safetensors"))


def test_wrong_size_against_the_models_weight(tmp_path: Path) -> None:
    stem = f"{STEM}_attn1_to_q"
    tensors = {
        f"{stem}.lora_up.weight": torch.ones(8, 2),
        f"{stem}.lora_down.weight": torch.ones(2, 8),
        f"{stem}.dora_scale": torch.ones(8, 1),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    layer = next(iter(read_lora(tmp_path / "x.safetensors").layers.values()))
    with pytest.raises(
        LoraFileError, match=r"wrong input or output size: it is made for \[8, 8\], the model has \[9, 8\]"
    ):
        layer.delta(torch.ones(9, 8))
