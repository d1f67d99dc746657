"""Means and intervals, against slow formulas and known distributions."""

from __future__ import annotations

import itertools
import math
import statistics as slow

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from klora.lab.benchmark import statistics as fast  # noqa: E402


def test_harmonic_mean_is_the_slow_one_and_0_where_one_is_0() -> None:
    rows = np.random.default_rng(0).random((20, 2))
    assert fast.harmonic_mean(rows) == pytest.approx([slow.harmonic_mean(row) for row in rows.tolist()])
    assert fast.harmonic_mean(np.array([[0.0, 1.0], [0.0, 0.0]])).tolist() == [0, 0]


def test_a_subjects_mean_is_over_all_its_pairs_and_seeds() -> None:
    values = torch.tensor([[1.0, 3.0], [5.0, 7.0], [10.0, 20.0]])
    assert fast.by_subject(values, ["fox", "fox", "owl"]).tolist() == [4, 15]
    assert fast.by_subject(values, ["fox", "owl", "fox"]).tolist() == [8.5, 6]


def test_resampled_means_have_the_distribution_of_all_resamples() -> None:
    values = np.array([0.1, 0.5, 0.9, 0.2])
    every = [np.mean(one) for one in itertools.product(values, repeat=4)]
    drawn = values[fast.resamples(4, draws=40_000)].mean(axis=1)
    assert drawn.mean() == pytest.approx(np.mean(every), abs=0.002)
    assert drawn.std() == pytest.approx(np.std(every), abs=0.002)


def test_the_interval_covers_a_known_mean_as_often_as_it_says() -> None:
    chance, drawn = np.random.default_rng(1), fast.resamples(12, draws=1000)
    hits = 0
    for _ in range(600):
        found = fast.estimate(chance.normal(0.5, 0.2, (12, 1)), fast.first, drawn)
        hits += found.low <= 0.5 <= found.high
    assert 0.93 <= hits / 600 <= 0.975  # three standard errors are 0.027


def test_more_seeds_of_the_same_subjects_are_no_new_evidence() -> None:
    few = torch.rand(6, 2, generator=torch.Generator().manual_seed(0))
    subjects, drawn = list("abcdef"), fast.resamples(6)
    once, often = (
        fast.estimate(fast.by_subject(values, subjects)[:, None], fast.first, drawn)
        for values in (few, few.repeat(1, 50))
    )
    assert often.low == pytest.approx(once.low)
    assert often.high == pytest.approx(once.high)


def test_a_paired_difference_knows_what_both_share() -> None:
    base = np.random.default_rng(2).random((12, 2))
    drawn = fast.resamples(12)
    same = fast.estimate(np.hstack([base, base]), fast.difference(fast.harmonic_mean), drawn)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert not same.excludes_zero
    shifted = fast.estimate(np.hstack([base[:, :1] + 0.1, base[:, :1]]), fast.difference(fast.first), drawn)
    assert (shifted.low, shifted.high) == pytest.approx((0.1, 0.1))
    assert shifted.excludes_zero


def test_one_subject_tells_nothing_of_others() -> None:
    alone = fast.estimate(np.array([[0.7]]), fast.first, fast.resamples(1))
    assert alone.value == 0.7
    assert math.isnan(alone.low)
    assert not alone.excludes_zero
    assert alone.as_json() == {"value": 0.7, "low": None, "high": None}


def test_few_subjects_widen_the_interval() -> None:
    assert fast.tail(4) < fast.tail(12) < fast.tail(1000) == pytest.approx(0.025, abs=2e-4)
