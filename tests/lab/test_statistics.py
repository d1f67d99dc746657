"""Means and intervals, against slow formulas and known distributions."""

from __future__ import annotations

import itertools
import math
import statistics as slow

import numpy as np
import pytest

pytest.importorskip("scipy")

from klora.lab.fronts import statistics as fast


def test_harmonic_mean_is_the_slow_one_and_0_where_one_is_0() -> None:
    rows = np.random.default_rng(0).random((20, 2))
    assert fast.harmonic_mean(rows) == pytest.approx([slow.harmonic_mean(row) for row in rows.tolist()])
    assert fast.harmonic_mean(np.array([[0.0, 1.0], [0.0, 0.0]])).tolist() == [0, 0]


def first(means: np.ndarray) -> np.ndarray:
    return means[..., 0]


def test_a_subjects_mean_is_over_all_its_pairs() -> None:
    values = np.array([[1.0, 3.0], [5.0, 7.0], [10.0, 20.0]])
    assert fast.units(values, ["fox", "fox", "owl"]).tolist() == [[3, 5], [10, 20]]
    assert fast.units(values, ["fox", "owl", "fox"]).tolist() == [[5.5, 11.5], [5, 7]]


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
        found = fast.estimate(chance.normal(0.5, 0.2, (12, 1)), first, drawn)
        hits += found.low <= 0.5 <= found.high
    assert 0.93 <= hits / 600 <= 0.975  # three standard errors are 0.027


def test_more_pairs_of_the_same_subjects_are_no_new_evidence() -> None:
    few = np.random.default_rng(0).random((6, 1))
    subjects, drawn = list("abcdef"), fast.resamples(6)
    once, often = (
        fast.estimate(fast.units(np.tile(few, (times, 1)), subjects * times), first, drawn)
        for times in (1, 50)
    )
    assert often.low == pytest.approx(once.low)
    assert often.high == pytest.approx(once.high)


def test_one_subject_tells_nothing_of_others() -> None:
    alone = fast.estimate(np.array([[0.7]]), first, fast.resamples(1))
    assert alone.value == 0.7
    assert math.isnan(alone.low)
    assert not alone.excludes_zero
    assert alone.as_json() == {"value": 0.7, "low": None, "high": None}


def test_few_subjects_widen_the_interval() -> None:
    assert fast.tail(4) < fast.tail(12) < fast.tail(1000) == pytest.approx(0.025, abs=2e-4)
