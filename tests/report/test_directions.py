"""Overlaps of directions against projections of whole matrices, and against chance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from klora.report.directions import Factors, Overlap, leading, overlap

OUT, IN = 20, 30


def random_factors(seed: int, rank: int, out: int = OUT, width: int = IN) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(out, rank, generator=generator)
    return Factors.from_pair(up, torch.randn(rank, width, generator=generator))


def dense(one: Factors) -> torch.Tensor:
    return one.up @ one.down


def projected_energy(one: torch.Tensor, onto: torch.Tensor) -> float:
    """Energy of the rows of ``one`` in the row space of ``onto``, by SVD of the whole matrix."""
    _, sizes, directions = torch.linalg.svd(onto, full_matrices=False)
    basis = directions[sizes > 1e-9 * sizes[0]]
    return float((one @ basis.T @ basis).pow(2).sum())


@given(
    seed=st.integers(0, 2**16),
    ranks=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    shared=st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_it_is_what_projecting_the_whole_matrices_gives(
    seed: int, ranks: tuple[int, int], shared: int
) -> None:
    content, style = random_factors(seed, ranks[0]), random_factors(seed + 1, ranks[1])
    common = min(shared, *ranks)
    style = Factors.from_pair(style.up, torch.cat([content.down[:common], style.down[common:]]))
    found, whole = overlap(content, style), (dense(content), dense(style))
    assert found.energy == pytest.approx([float(one.pow(2).sum()) for one in whole])
    assert found.rows == pytest.approx([projected_energy(*whole), projected_energy(*whole[::-1])])
    turned = whole[0].T, whole[1].T
    assert found.columns == pytest.approx([projected_energy(*turned), projected_energy(*turned[::-1])])
    assert found.product == pytest.approx(float((whole[0] * whole[1]).sum()), abs=1e-9)
    assert found.share(found.rows_by_chance) == pytest.approx((ranks[1] / IN, ranks[0] / IN))
    assert found.share(found.columns_by_chance) == pytest.approx((ranks[1] / OUT, ranks[0] / OUT))


def test_the_same_lora_overlaps_whole_and_is_aligned() -> None:
    one = random_factors(0, 3)
    found = overlap(one, one)
    assert found.share(found.rows) == pytest.approx((1, 1))
    assert found.excess == pytest.approx(1)
    assert found.alignment == pytest.approx(1)
    opposite = overlap(one, Factors.from_pair(-one.up, one.down))
    assert opposite.alignment == pytest.approx(-1)


def test_random_loras_overlap_as_chance_says() -> None:
    layers = [
        overlap(random_factors(2 * at, 4, 64, 96), random_factors(2 * at + 1, 8, 64, 96)) for at in range(200)
    ]
    total = sum(layers, Overlap.none())
    assert total.share(total.rows) == pytest.approx(total.share(total.rows_by_chance), rel=0.1)
    assert total.share(total.columns) == pytest.approx(total.share(total.columns_by_chance), rel=0.1)
    assert total.excess < 0.01
    assert abs(total.alignment) < 0.01


def test_directions_that_a_lora_does_not_use_do_not_count() -> None:
    content = random_factors(0, 2)
    doubled = Factors.from_pair(torch.cat([content.up] * 2, 1), torch.cat([content.down] * 2))
    found = overlap(random_factors(1, 3), doubled)
    assert found.share(found.rows_by_chance)[0] == pytest.approx(2 / IN)


def test_a_lora_that_is_zero_has_no_directions() -> None:
    nothing = Factors.from_pair(torch.zeros(OUT, 2), torch.zeros(2, IN))
    found = overlap(random_factors(0, 2), nothing)
    assert found.energy[1] == found.rows[0] == found.columns[0] == 0
    assert found.share(found.rows) == (0, 0)
    assert found.alignment == found.excess == 0


def test_leading_directions_of_a_low_rank_matrix_are_the_matrix() -> None:
    whole = dense(random_factors(5, 3))
    up, down = leading(whole, 8)
    assert torch.allclose(up @ down, whole, atol=1e-9)
    noisy = whole + 1e-3 * torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0))
    up, down = leading(noisy, 3)
    best = torch.linalg.svdvals(noisy)[3:].norm()
    assert float((up @ down - noisy).norm()) <= 1.05 * float(best)
