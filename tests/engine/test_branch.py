"""Branches beside a layer: what they add to the unconditional rows, for every sort of layer and delta."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from klora.errors import HostError
from klora.weights.branch import BatchRows, Branches, RowDelta, ranges_of, summed
from klora.weights.forms import LowRank, Whole

CHANCE = torch.Generator().manual_seed(4)
seeds = st.integers(0, 2**20)


def draw_from(seed: int) -> None:
    """An example depends on what hypothesis drew alone, so that a failing example can be repeated."""
    CHANCE.manual_seed(seed)
    torch.manual_seed(seed)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=CHANCE)


def linear(inside: int = 6, out: int = 8) -> nn.Linear:
    return nn.Linear(inside, out).requires_grad_(False)


def merged(layer: nn.Module, given_: Tensor, changes: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    """The layer's output with dW merged into its weight."""
    weight = layer.weight + sum(one.reshape(layer.weight.shape) for one in changes)
    total = layer.bias if bias is None else layer.bias + bias
    if isinstance(layer, nn.Conv2d):
        like = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        return functional.conv2d(given_, weight, total, **like)
    return functional.linear(given_, weight, total)


def close(found: Tensor, expected: Tensor) -> None:
    """The same but for rounding, which grows with the largest element, also where sums nearly cancel."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


def with_branch(
    layer: nn.Module, given_: Tensor, terms: Sequence[tuple[float, RowDelta]], rows: Sequence[tuple[int, int]]
) -> Tensor:
    branches = Branches()
    branches.put(layer, "all", terms)
    branches.rows.tell(given_.shape[0], rows)
    output = layer(given_)
    branches.clear()
    assert not layer._forward_hooks
    return output


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(seeds, st.integers(1, 6), st.integers(0, 6), st.integers(0, 6), st.floats(-2, 2))
def test_rows_get_what_merging_would_give_them(
    seed: int, batch: int, first: int, last: int, factor: float
) -> None:
    draw_from(seed)
    layer, given_ = linear(), normal(batch, 3, 6)
    up, down = normal(8, 2), normal(2, 6)
    start, stop = sorted((min(first, batch), min(last, batch)))
    found = with_branch(layer, given_, [(factor, RowDelta(LowRank(up, down)))], [(start, stop)])
    expected = layer(given_)
    expected[start:stop] = merged(layer, given_, [factor * up @ down])[start:stop]
    close(found, expected)
    outside = [row for row in range(batch) if not start <= row < stop]
    assert torch.equal(found[outside], layer(given_)[outside])


def test_several_terms_ranges_and_a_bias() -> None:
    layer, given_ = linear(), normal(5, 6)
    up, down, dense, bias = normal(8, 2), normal(2, 6), normal(8, 6), normal(8)
    terms = [(0.5, RowDelta(LowRank(up, down), bias=bias)), (-1.5, RowDelta(Whole(dense)))]
    found = with_branch(layer, given_, terms, [(0, 1), (3, 5)])
    expected = layer(given_)
    changed = merged(layer, given_, [0.5 * up @ down, -1.5 * dense], 0.5 * bias)
    for rows in (slice(0, 1), slice(3, 5)):
        expected[rows] = changed[rows]
    close(found, expected)


def test_a_row_that_a_layer_sees_as_several() -> None:
    """As the temporal layers of video models, which fold frames into the batch."""
    layer, given_ = linear(), normal(6, 3, 6)
    branches, delta = Branches(), normal(8, 6)
    branches.put(layer, "all", [(1.0, RowDelta(Whole(delta)))])
    branches.rows.tell(2, [(0, 1)])
    found = layer(given_)
    branches.clear()
    close(found[:3], merged(layer, given_[:3], [delta]))
    assert torch.equal(found[3:], layer(given_)[3:])


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    rows = BatchRows()
    rows.tell(2, [(0, 1)])
    with pytest.raises(HostError, match=r"3 rows for a batch of 2.*Negative side to both"):
        rows.of(normal(3, 6))
    rows.tell(2, [(1, 1)])
    assert rows.of(normal(3, 6)) == ()
    rows.tell(2, None)
    with pytest.raises(HostError, match="Negative side to both"):
        rows.of(normal(2, 6))


@given(st.lists(st.booleans(), max_size=12))
def test_ranges_of_marked_places(marks: list[bool]) -> None:
    ranges = ranges_of(marks)
    inside = [any(start <= place < stop for start, stop in ranges) for place in range(len(marks))]
    assert inside == marks
    assert all(start < stop for start, stop in ranges)
    assert all(stop < start for (_, stop), (start, _) in pairwise(ranges))


@pytest.mark.parametrize("is_low_rank", [True, False])
def test_parts_of_a_fused_projection(is_low_rank: bool) -> None:
    """q and v of a fused qkv, v in two pieces; each part by its own name."""
    layer, given_ = linear(6, 12), normal(2, 5, 6)
    branches = Branches()
    whole = torch.zeros(12, 6)
    for name, rows in {"q": ((0, 4),), "v": ((8, 9), (10, 12))}.items():
        count = sum(last - first for first, last in rows)
        up, down = normal(count, 2), normal(2, 6)
        delta = (
            RowDelta(LowRank(up, down), rows=rows) if is_low_rank else RowDelta(Whole(up @ down), rows=rows)
        )
        branches.put(layer, name, [(2.0, delta)])
        done = 0
        for first, last in rows:
            whole[first:last] = 2 * (up @ down)[done : done + last - first]
            done += last - first
    branches.rows.tell(2, [(1, 2)])
    found = layer(given_)
    close(found[1:], merged(layer, given_, [whole])[1:])
    branches.put(layer, "q", [])
    whole[:4] = 0
    close(layer(given_)[1:], merged(layer, given_, [whole])[1:])
    branches.put(layer, "v", [(0.0, RowDelta(Whole(normal(3, 6))))])
    assert not layer._forward_hooks
    assert torch.equal(layer(given_), functional.linear(given_, layer.weight, layer.bias))


@pytest.mark.parametrize(
    ("options", "down"),
    [
        ({"kernel_size": 3, "padding": 1}, (2, 4, 3, 3)),
        ({"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2}, (2, 4, 3, 3)),
        ({"kernel_size": 3, "padding": 1}, (2, 36)),
        ({"kernel_size": 1}, (2, 4, 1, 1)),
        ({"kernel_size": 1}, (2, 4)),
    ],
)
@pytest.mark.parametrize("is_low_rank", [True, False])
def test_convolutions(options: dict[str, int], down: tuple[int, ...], is_low_rank: bool) -> None:
    layer, given_ = nn.Conv2d(4, 6, **options).requires_grad_(False), normal(3, 4, 9, 9)
    a, b, bias = normal(*down), normal(6, 2, 1, 1), normal(6)
    dense = (b.flatten(1) @ a.flatten(1)).reshape(layer.weight.shape)
    delta = RowDelta(LowRank(b, a), bias=bias) if is_low_rank else RowDelta(Whole(dense), bias=bias)
    found = with_branch(layer, given_, [(0.7, delta)], [(0, 2)])
    close(found[:2], merged(layer, given_, [0.7 * dense], 0.7 * bias)[:2])
    assert torch.equal(found[2:], layer(given_)[2:])


@pytest.mark.parametrize("shape", [(2, 6, 1, 1), (2, 6)])
def test_a_linear_whose_lora_is_a_convolution_of_1_x_1(shape: tuple[int, ...]) -> None:
    layer, given_ = linear(), normal(2, 3, 6)
    up, down = normal(8, 2, 1, 1), normal(*shape)
    found = with_branch(layer, given_, [(1.0, RowDelta(LowRank(up, down)))], [(0, 2)])
    close(found, merged(layer, given_, [up.flatten(1) @ down.flatten(1)]))


def test_half_precision_stays_so() -> None:
    layer, given_ = linear().to(torch.bfloat16), normal(2, 6).to(torch.bfloat16)
    delta = RowDelta(LowRank(normal(8, 2), normal(2, 6)), bias=normal(8))
    found = with_branch(layer, given_, [(1.0, delta)], [(0, 1)])
    assert found.dtype == torch.bfloat16
    assert not torch.equal(found[:1], layer(given_)[:1])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    seeds,
    st.lists(st.tuples(st.floats(-2, 2), st.sampled_from([0, 1, 2, 5])), min_size=1, max_size=4),
    st.booleans(),
)
def test_terms_are_summed_to_a_single_delta(
    seed: int, terms: list[tuple[float, int]], is_convolution: bool
) -> None:
    """``terms`` are factors and ranks; rank 0 stands for a dW without factors."""
    draw_from(seed)
    layer: nn.Module = nn.Conv2d(4, 8, 3, padding=1).requires_grad_(False) if is_convolution else linear(36)
    given_ = normal(2, 4, 5, 5) if is_convolution else normal(2, 3, 36)
    deltas = [
        RowDelta(Whole(normal(8, 36))) if rank == 0 else RowDelta(LowRank(normal(8, rank), normal(rank, 36)))
        for _, rank in terms
    ]
    weighed = [(factor, delta) for (factor, _), delta in zip(terms, deltas, strict=True)]
    (total,) = summed(weighed, torch.device("cpu"))
    whole = sum(factor * delta.form.matrix() for factor, delta in weighed)
    close(total.form.matrix(), torch.as_tensor(whole))
    ranks = [rank for _, rank in terms]
    assert isinstance(total.form, LowRank) == (0 not in ranks and sum(ranks) * (8 + 36) < 8 * 36)
    close(with_branch(layer, given_, weighed, [(0, 2)]), merged(layer, given_, [torch.as_tensor(whole)]))


def test_the_sum_is_formed_once_and_anew_after_each_change() -> None:
    layer, given_ = linear(), normal(2, 6)
    branches, dense = Branches(), normal(8, 6)
    branches.rows.tell(2, [(0, 2)])
    branches.put(layer, "all", [(1.0, RowDelta(Whole(dense))), (0.5, RowDelta(Whole(dense)))])
    assert branches.held_bytes() == 0
    close(layer(given_), merged(layer, given_, [1.5 * dense]))
    assert branches.held_bytes() == 8 * 6 * 4
    dense.neg_()  # what has been formed is used again, whatever becomes of its source
    close(layer(given_), merged(layer, given_, [-1.5 * dense]))
    branches.put(layer, "all", [(0.5, RowDelta(Whole(dense)))])
    close(layer(given_), merged(layer, given_, [0.5 * dense]))
    layer.to(torch.bfloat16)
    assert layer(given_.to(torch.bfloat16)).dtype == torch.bfloat16
    assert branches.held_bytes() == 8 * 6 * 2
    branches.clear()
    assert branches.held_bytes() == 0


def test_an_output_that_cannot_be_seen_flat() -> None:
    class Turned(nn.Linear):
        def forward(self, given_: Tensor) -> Tensor:
            return super().forward(given_).transpose(0, 1).contiguous().transpose(0, 1)

    layer, given_, delta = Turned(6, 8).requires_grad_(False), normal(3, 4, 6), normal(8, 6)
    found = with_branch(layer, given_, [(1.0, RowDelta(Whole(delta)))], [(0, 2)])
    assert not found[:2].is_contiguous()
    close(found[:2], merged(layer, given_, [delta])[:2])
    close(found[2:], layer(given_)[2:])


def test_under_autocast_a_branch_is_as_exact_as_the_layer() -> None:
    layer, given_, up, down = linear(), normal(2, 3, 6), normal(8, 2), normal(2, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = with_branch(layer, given_, [(1.0, RowDelta(LowRank(up, down)))], [(0, 1)])
        plain = layer(given_)
    assert found.dtype == plain.dtype == torch.bfloat16
    assert torch.equal(found[1:], plain[1:])
    expected = merged(layer, given_, [up @ down])[:1].to(torch.bfloat16)
    torch.testing.assert_close(found[:1], expected, rtol=0.05, atol=0.05)


def test_a_hook_is_there_only_while_something_is_added() -> None:
    layers = [linear(), linear()]
    branches = Branches()
    for layer in layers:
        branches.put(layer, "all", [])
        assert not layer._forward_hooks
        branches.put(layer, "all", [(1.0, RowDelta(Whole(normal(8, 6))))])
        branches.put(layer, "all", [(2.0, RowDelta(Whole(normal(8, 6))))])
        assert len(layer._forward_hooks) == 1
    branches.put(layers[0], "all", [])
    assert [len(layer._forward_hooks) for layer in layers] == [0, 1]
    branches.clear()
    branches.clear()
    assert not any(layer._forward_hooks for layer in layers)
