"""Two files side by side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from klora.errors import LoraFileError
from klora.files import pair_layers, read_lora

from .spellings import (
    FLUX,
    FLUX_SPLIT_DIALECTS,
    NATIVE_DIALECTS,
    SCALE,
    SD1,
    UNET_DIALECTS,
    deltas,
    pairs,
    write,
)

REFERENCE = Path(__file__).parents[1] / "data" / "reference"


@pytest.mark.parametrize("dialect", UNET_DIALECTS)
def test_pairs_do_not_depend_on_the_dialect(dialect: str, tmp_path: Path) -> None:
    content, style = pairs(SD1, seed=1), pairs(SD1, seed=2)
    first = read_lora(write(tmp_path / "c.safetensors", content, UNET_DIALECTS[dialect]))
    second = read_lora(write(tmp_path / "s.safetensors", style, UNET_DIALECTS["kohya"]))
    found = pair_layers(first, second)
    assert [pair.name for pair in found] == list(SD1)
    for pair in found:
        assert pair.attention
        assert pair.content is not None and pair.style is not None  # noqa: PT018
        for layer, truth in ((pair.content, content), (pair.style, style)):
            expected = deltas(truth)[pair.name]
            assert float((layer.delta().double() - expected).norm() / expected.norm()) < 1e-6


def test_a_layer_of_one_file_only(tmp_path: Path) -> None:
    names = list(SD1)
    first = read_lora(
        write(tmp_path / "c.safetensors", pairs({n: SD1[n] for n in names[:3]}), UNET_DIALECTS["peft"])
    )
    second = read_lora(
        write(tmp_path / "s.safetensors", pairs({n: SD1[n] for n in names[2:]}), UNET_DIALECTS["kohya"])
    )
    found = pair_layers(first, second)
    assert [pair.name for pair in found] == names
    sides = [(pair.content is not None, pair.style is not None) for pair in found]
    assert sides == [(True, False), (True, False), (True, True), (False, True), (False, True)]


def test_fused_against_split(tmp_path: Path) -> None:
    """Rows of a fused projection are exact, with the scale of the fused tensor."""
    fused = pairs({module: (sum(rows), inside) for module, (_, rows, inside) in FLUX.items()}, seed=1)
    widths = {
        part: (rows, inside)
        for parts, counts, inside in FLUX.values()
        for part, rows in zip(parts, counts, strict=True)
    }
    first = read_lora(write(tmp_path / "c.safetensors", fused, NATIVE_DIALECTS["kohya"]))
    second = read_lora(
        write(tmp_path / "s.safetensors", pairs(widths, 2), FLUX_SPLIT_DIALECTS["diffusers-transformer"])
    )
    found = {pair.name: pair for pair in pair_layers(first, second)}
    assert set(found) == set(widths)
    some = [name for name in found if name.endswith((".attn.to_q", ".proj_mlp"))]
    single = "single_transformer_blocks.7"
    assert some == ["transformer_blocks.0.attn.to_q", f"{single}.proj_mlp", f"{single}.attn.to_q"]
    for module, (parts, counts, _) in FLUX.items():
        down, up = fused[module]
        for part, rows in zip(parts, up.split(counts), strict=True):
            layer = found[part].content
            assert layer is not None
            assert layer.rank == 3
            assert torch.equal(layer.delta(dtype=torch.float64), rows.double() @ down.double() * SCALE)


def test_parts_of_a_fused_type_without_factors(tmp_path: Path) -> None:
    diff = torch.randn(18, 6)
    save_file({"lora_unet_double_blocks_0_img_attn_qkv.diff": diff}, tmp_path / "x.safetensors")
    file = read_lora(tmp_path / "x.safetensors")
    found = [pair.style.delta() for pair in pair_layers(file, file) if pair.style]
    assert torch.equal(torch.cat(found), diff)


def test_other_sizes_are_refused(tmp_path: Path) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    first = read_lora(write(tmp_path / "small.safetensors", pairs({name: (8, 8)}), UNET_DIALECTS["kohya"]))
    second = read_lora(write(tmp_path / "large.safetensors", pairs({name: (12, 12)}), UNET_DIALECTS["kohya"]))
    with pytest.raises(
        LoraFileError,
        match=r"large.safetensors: layer mid_block.*\[12, 12\] where small.safetensors has \[8, 8\]",
    ):
        pair_layers(first, second)


def test_a_projection_as_convolution_fits_one_as_linear(tmp_path: Path) -> None:
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    for file, ones in (("a", ()), ("b", (1, 1))):
        tensors = {
            f"{stem}.lora_up.weight": torch.ones(8, 2, *ones),
            f"{stem}.lora_down.weight": torch.ones(2, 8, *ones),
        }
        save_file(tensors, tmp_path / f"{file}.safetensors")
    (pair,) = pair_layers(read_lora(tmp_path / "a.safetensors"), read_lora(tmp_path / "b.safetensors"))
    assert pair.content is not None and pair.style is not None  # noqa: PT018
    assert (pair.content.shape, pair.style.shape) == ((8, 8), (8, 8, 1, 1))


@pytest.mark.skipif(
    not (REFERENCE / "open_a.json").is_file(), reason="the reference pairs are not in this checkout"
)
@pytest.mark.parametrize("name", ["open_a", "open_b", "open_c"])
def test_order_of_the_reference_pairs(name: str) -> None:
    known = json.loads((REFERENCE / f"{name}.json").read_text())
    found = pair_layers(
        read_lora(REFERENCE / f"{name}_content.safetensors"),
        read_lora(REFERENCE / f"{name}_style.safetensors"),
    )
    assert [pair.name for pair in found] == known["layers"]
    assert {pair.content.rank for pair in found if pair.content} == {known["rank_content"]}


def test_a_copy_under_another_name_is_the_same_content(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", pairs(SD1), UNET_DIALECTS["kohya"])
    shutil.copyfile(path, tmp_path / "b.safetensors")
    first, second = read_lora(path), read_lora(tmp_path / "b.safetensors", name="other")
    assert first.content_hash == second.content_hash
    assert first.identity != second.identity
    assert (first.name, second.name) == ("a", "other")
