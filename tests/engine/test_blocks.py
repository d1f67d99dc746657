"""Measures taken from blocks of rows against plain sorting, and rows of a file against its whole dW."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from klora.errors import LoraFileError
from klora.files import LayerRows, read_lora
from klora.scores import ENERGY, TOP_K_SUM, TOTAL, Scratch, delta, score_layer
from klora.scores.delta import WholeDelta
from klora.scores.measures import MEASURES, measure_by_rows
from klora.settings import TopK

SAMPLES = sorted((Path(__file__).parents[1] / "data" / "files").glob("*.safetensors"))
ALL = (TOP_K_SUM, TOTAL, ENERGY)


def plain(tensor: torch.Tensor, k: int) -> dict[str, float]:
    numbers = np.sort(tensor.double().abs().numpy().ravel())
    return {
        TOP_K_SUM: math.fsum(numbers[-k:]),
        TOTAL: math.fsum(numbers),
        ENERGY: math.fsum(numbers**2),
    }


def agree(tensor: torch.Tensor, k: int, scratch: Scratch | None = None) -> None:
    found = measure_by_rows(WholeDelta(tensor), ALL, k, scratch or Scratch())
    assert found == pytest.approx(plain(tensor, k), rel=1e-6, abs=0)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 300), st.integers(1, 90)),
    block=st.integers(1, 4000),
    share=st.floats(0.0001, 1),
    kind=st.sampled_from(["noise", "ties", "zeros", "rows differ", "columns differ", "product"]),
)
def test_blocks_give_what_sorting_gives(
    seed: int, shape: tuple[int, int], block: int, share: float, kind: str
) -> None:
    random = torch.Generator().manual_seed(seed)
    tensor = torch.randn(shape, generator=random)
    if kind == "ties":
        tensor = (tensor * 2).round()
    elif kind == "zeros":
        tensor *= torch.rand(shape, generator=random) < 0.02
    elif kind == "rows differ":
        tensor *= torch.randn(shape[0], 1, generator=random).mul(3).exp()
    elif kind == "columns differ":
        tensor *= torch.randn(shape[1], generator=random).mul(3).exp()
    elif kind == "product":
        tensor = torch.randn(shape[0], 2, generator=random) @ torch.randn(2, shape[1], generator=random)
    k = max(1, round(share * tensor.numel()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta, "_BLOCK", block)
        patch.setattr(delta, "_FEWEST_ROWS", 1)
        agree(tensor, k)


@pytest.mark.parametrize("k", [1, 7, 1024, 16384, 200_000, 900_000])
@pytest.mark.parametrize("where", ["first block", "last block", "one row", "nowhere"])
def test_a_first_block_that_misleads(where: str, k: int) -> None:
    """All that is large lies where the first block has too much of it, or none."""
    tensor = torch.rand(1000, 1000, generator=torch.Generator().manual_seed(3))
    large = {"first block": slice(0, None, 2), "last block": slice(1, None, 2), "one row": slice(7, 8)}
    if where in large:
        tensor[large[where]] += 100
    agree(tensor, k)


@pytest.mark.parametrize(
    "shape", [(640, 640), (1280, 2048), (320, 4, 3, 3), (4, 320, 3, 3), (1, 7), (2000, 1)]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_shapes_and_number_formats(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    scratch = Scratch()
    for seed in range(2):  # the same memory twice
        tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
        before = tensor.clone()
        agree(tensor, min(1024, tensor.numel()), scratch)
        assert torch.equal(tensor, before), "what a host hands over is written into"


def test_a_row_whose_sum_leaves_the_range_of_fp32() -> None:
    tensor = torch.full((5, 40), 3e37)
    found = measure_by_rows(WholeDelta(tensor), (TOTAL, TOP_K_SUM), 30, Scratch())
    assert found[TOTAL] == pytest.approx(200 * 3e37, rel=1e-6)
    assert found[TOP_K_SUM] == pytest.approx(30 * 3e37, rel=1e-6)


def test_a_view_and_a_tensor_with_gradient() -> None:
    fused = torch.randn(96, 40, generator=torch.Generator().manual_seed(4), requires_grad=True)
    agree(fused[32:64].detach(), 20)
    agree(fused.detach().T, 20)
    assert measure_by_rows(WholeDelta(fused), (TOTAL,), 0, Scratch())[TOTAL] > 0


def test_both_forms_of_a_measure_agree() -> None:
    tensor = torch.randn(700, 900, generator=torch.Generator().manual_seed(5))
    found = measure_by_rows(WholeDelta(tensor), ALL, 500, Scratch())
    assert found == pytest.approx({name: MEASURES[name].of(tensor.abs(), 500) for name in ALL}, rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_bad_number_in_a_large_layer_is_named(bad: float) -> None:
    good = torch.rand(1280, 1280, generator=torch.Generator().manual_seed(6))
    broken = good.clone()
    broken[1279, 1279] = bad
    with pytest.raises(LoraFileError, match=r"ink: layer mid\.attn holds NaN") as caught:
        score_layer(
            "mid.attn",
            good,
            broken,
            TopK.parse("rank"),
            (TOP_K_SUM,),
            content_rank=None,
            style_rank=None,
            style_file="ink",
        )
    assert (caught.value.file, caught.value.layer) == ("ink", "mid.attn")


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_rows_of_a_layer_are_those_of_its_dw(path: Path) -> None:
    """Every type; the whole dW itself is tested against the library that owns the type."""
    for layer in read_lora(path).all_layers:
        if layer.needs_base:
            with pytest.raises(LoraFileError, match=layer.name):
                LayerRows(layer)
            continue
        whole = layer.delta().flatten(1)
        rows = LayerRows(layer)
        assert rows.shape == layer.shape
        assert torch.equal(rows.whole(), layer.delta())
        for which in (slice(0, None, 1), slice(1, None, 3), slice(2, None, 3)):
            found = rows.rows(which, torch.empty(whole.numel()))
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, whole[which], rtol=1e-5, atol=1e-6 * float(whole.abs().max()))


def test_rows_of_a_part_of_a_fused_projection(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(7)
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {
        f"{stem}.lora_up.weight": torch.randn(3 * 3072, 2, generator=random),
        f"{stem}.lora_down.weight": torch.randn(2, 3072, generator=random),
        f"{stem}.alpha": torch.tensor(1.0),
    }
    save_file(tensors, tmp_path / "flux.safetensors")
    (layer,) = read_lora(tmp_path / "flux.safetensors").layers.values()
    parts = layer.parts()
    assert len(parts) == 3
    for part in parts:
        found = LayerRows(part).rows(slice(5, None, 97), torch.empty(40 * 3072))
        torch.testing.assert_close(found, part.delta()[5::97], rtol=1e-5, atol=1e-5)
