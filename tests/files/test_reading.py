"""Several tensors at a time, and numbers without torch: as one by one, from a file and over a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from klora.errors import LoraFileError
from klora.files import LayerRows, read_lora
from klora.files.container import open_container
from klora.files.overlay import with_tensors

FORMATS = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_number_of_every_format(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    number = torch.full(shape, 1.5 if dtype.is_floating_point else 1).to(dtype)
    save_file({"before": torch.ones(3), "x": number}, tmp_path / "a.safetensors")
    assert open_container(tmp_path / "a.safetensors").read_number("x") == float(number.double())


def test_all_at_once_is_as_one_by_one(tmp_path: Path) -> None:
    tensors = {name: torch.randn(place, 7).half() for place, name in enumerate("abc")}
    save_file(tensors, tmp_path / "a.safetensors")
    container = open_container(tmp_path / "a.safetensors")
    for one, name in zip(container.read_all(["c", "a", "b"]), "cab", strict=True):
        assert torch.equal(one, tensors[name])
        assert torch.equal(one, container.read(name))


def test_a_file_that_ends_early_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.ones(100)}, tmp_path / "a.safetensors")
    container = open_container(tmp_path / "a.safetensors")
    with (tmp_path / "a.safetensors").open("r+b") as stream:
        stream.truncate(200)
    for ask in (container.read, container.read_number, lambda key: container.read_all([key])):
        with pytest.raises(LoraFileError, match="replaced on disk"):
            ask("a")


def test_rows_of_what_a_transform_has_made(tmp_path: Path) -> None:
    """From memory, not from the place in the file where it is not."""
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    random = torch.Generator().manual_seed(1)
    tensors = {
        f"{stem}.lora_up.weight": torch.randn(12, 2, generator=random),
        f"{stem}.lora_down.weight": torch.randn(2, 12, generator=random),
        f"{stem}.alpha": torch.tensor(1.0),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    file = read_lora(tmp_path / "a.safetensors")
    up = torch.randn(12, 2, generator=random)
    for replaced in ({f"{stem}.lora_up.weight": up}, {f"{stem}.alpha": torch.tensor(3.0)}):
        (layer,) = with_tensors(file, replaced).layers.values()
        merged = {**tensors, **replaced}
        scale = float(merged[f"{stem}.alpha"]) / 2
        expected = scale * merged[f"{stem}.lora_up.weight"] @ merged[f"{stem}.lora_down.weight"]
        for _ in range(2):  # what is in memory is not scaled again
            torch.testing.assert_close(LayerRows(layer).rows(slice(None), torch.empty(144)), expected)
        torch.testing.assert_close(layer.delta(), expected)
