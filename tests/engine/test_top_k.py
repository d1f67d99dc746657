"""Top-K sums, totals and the energy rank against plain sorting and the singular values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from klora.errors import LoraFileError
from klora.scores import ENERGY, TOP_K_SUM, TOTAL, energy_rank, score_layer, top_k_sum
from klora.scores.top_k import total
from klora.settings import TopK


def largest(magnitudes: torch.Tensor, k: int) -> float:
    return math.fsum(sorted(magnitudes.double().flatten().tolist(), reverse=True)[:k])


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3000), st.integers(1, 4000), st.booleans())
def test_top_k_sum_is_the_sum_of_the_largest(seed: int, elements: int, k: int, has_ties: bool) -> None:
    magnitudes = torch.randn(elements, generator=torch.Generator().manual_seed(seed)).abs()
    if has_ties:
        magnitudes = (magnitudes * 2).round() / 2
    assert top_k_sum(magnitudes, k) == pytest.approx(largest(magnitudes, k), rel=1e-9)


@pytest.mark.parametrize("k", [1, 64, 1024, 16384, 65536, 2**20])
@pytest.mark.parametrize("kind", ["random", "sorted", "one spike", "equal", "odd size"])
def test_large_layers(kind: str, k: int) -> None:
    magnitudes = torch.rand(2**20, generator=torch.Generator().manual_seed(1))
    if kind == "sorted":
        magnitudes = magnitudes.sort().values
    elif kind == "one spike":
        magnitudes = torch.zeros(2**20)
        magnitudes[12345] = 3
    elif kind == "equal":
        magnitudes = torch.full((2**20,), 0.5)
    elif kind == "odd size":
        magnitudes = magnitudes[:-7]
    expected = float(np.sort(magnitudes.double().numpy())[-k:].sum())
    assert top_k_sum(magnitudes.reshape(-1, 1), k) == pytest.approx(expected, rel=1e-9)


def test_half_precision_is_summed_without_overflow() -> None:
    magnitudes = torch.full((64, 64), 60000.0, dtype=torch.float16)
    assert top_k_sum(magnitudes, 4096) == total(magnitudes) == 4096 * float(magnitudes[0, 0])
    assert top_k_sum(magnitudes, 5) == 5 * float(magnitudes[0, 0])


@pytest.mark.parametrize("shape", [(1,), (3, 5), (700, 900), (4, 3, 3, 3)])
def test_total_is_the_exact_sum(shape: tuple[int, ...]) -> None:
    magnitudes = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    assert total(magnitudes) == pytest.approx(math.fsum(magnitudes.double().flatten().tolist()), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 24), st.integers(1, 24), st.floats(0.3, 0.999))
def test_energy_rank_is_that_of_the_singular_values(seed: int, out: int, inside: int, share: float) -> None:
    delta = torch.randn(out, inside, generator=torch.Generator().manual_seed(seed))
    held = np.cumsum(np.linalg.svd(delta.double().numpy(), compute_uv=False) ** 2)
    if np.any(np.abs(held / held[-1] - share) < 1e-9):
        return  # rounding decides
    assert energy_rank(delta, share) == 1 + int(np.sum(held / held[-1] < share))


def test_energy_rank_of_known_matrices() -> None:
    assert energy_rank(torch.zeros(5, 7)) == 1
    assert energy_rank(torch.eye(6)) == 6
    assert energy_rank(torch.ones(6, 2, 3, 3)) == 1
    assert energy_rank(torch.diag(torch.tensor([10.0, 10.0, 0.1]))) == 2


def test_ranks_that_are_missing_are_replaced_by_the_energy_rank() -> None:
    contest = score_layer(
        "layer",
        torch.eye(6),
        torch.ones(6, 6),
        TopK.parse("rank"),
        (TOP_K_SUM, TOTAL, ENERGY),
        content_rank=None,
        style_rank=None,
    )
    assert contest.top_k == 6
    assert contest.measured == {TOP_K_SUM: (6.0, 6.0), TOTAL: (6.0, 36.0), ENERGY: pytest.approx((6.0, 36.0))}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["fox", "ink"])
def test_a_delta_that_is_not_finite_is_named(side: str, bad: float) -> None:
    deltas = {"fox": torch.ones(3, 3), "ink": torch.ones(3, 3)}
    deltas[side][1, 2] = bad
    with pytest.raises(LoraFileError, match=side) as caught:
        score_layer(
            "mid_block.attn1",
            deltas["fox"],
            deltas["ink"],
            TopK.parse("4"),
            (TOP_K_SUM,),
            content_rank=1,
            style_rank=1,
            content_file="fox",
            style_file="ink",
        )
    assert (caught.value.file, caught.value.layer) == (side, "mid_block.attn1")
    assert "mid_block.attn1" in str(caught.value)
