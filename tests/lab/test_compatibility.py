"""The compatibility index and the automatic balance, on pairs made so that the answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for module in ("diffusers", "transformers", "scipy"):
    pytest.importorskip(module, reason="install the extra 'lab' to test the lab")

from klora.lab.fronts import compatibility, prediction  # noqa: E402
from klora.lab.fronts.branches import Branch, Pair  # noqa: E402
from klora.lab.fronts.calibration import Effects  # noqa: E402

BALANCES = (-0.5, -0.25, 0.0, 0.25, 0.5)


def _pair(down: torch.Tensor, up: torch.Tensor, ranks: tuple[int, int] = (1, 1)) -> tuple[Pair, Effects]:
    names = ("layer",)
    norms = np.array([[[1.0, 2.0]], [[1.0, 8.0]]])
    return Pair(names, {"layer": Branch(down, up, ranks)}), Effects(names, norms)


def test_features_of_a_pair_by_hand() -> None:
    # Content is 1 at (0, 0), style 3 at (1, 0): one row space, no common entry.
    pair, effects = _pair(torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0]]), torch.tensor([[1.0, 0], [0, 3.0]]))
    found = dict(zip(compatibility.FEATURES, compatibility.features(pair, effects), strict=True))
    assert found["log strength ratio"] == pytest.approx(math.log(3))
    assert found["overlap"] == pytest.approx(1 - 1 / 4)
    assert found["agreement"] == pytest.approx(0)
    assert found["shared layers"] == 1
    assert found["log effect ratio"] == pytest.approx(math.log(68 / 2) / 2)
    assert found["log effect ratio, late less early"] == pytest.approx(math.log(4))


def test_deltas_that_are_alike_agree() -> None:
    pair, effects = _pair(torch.tensor([[1.0, 2.0], [2.0, 4.0]]), torch.tensor([[1.0, 0.5], [0, 0]]))
    found = dict(zip(compatibility.FEATURES, compatibility.features(pair, effects), strict=True))
    assert found["agreement"] == pytest.approx(1, abs=1e-6)


def test_the_index_finds_the_order_that_a_feature_has() -> None:
    chance = np.random.default_rng(0)
    known = chance.normal(size=(60, 7))
    outcome = 0.5 + 0.2 * known[:, 2] + 0.02 * chance.normal(size=60)
    index = compatibility.Index.fit(known[:30], outcome[:30])
    said = index.of(known[30:])
    assert said.min() >= 0
    assert said.max() <= 100
    assert compatibility.rank_correlation(said, outcome[30:]) > 0.9


def test_noise_has_no_rank_correlation() -> None:
    chance = np.random.default_rng(1)
    known, outcome = chance.normal(size=(200, 7)), chance.random(200)
    index = compatibility.Index.fit(known[:100], outcome[:100])
    assert abs(compatibility.rank_correlation(index.of(known[100:]), outcome[100:])) < 0.3
    assert compatibility.rank_correlation(np.zeros(5), np.arange(5.0)) == 0


def test_a_balance_that_hangs_on_a_feature_is_chosen_by_it() -> None:
    chance = np.random.default_rng(2)
    known = chance.normal(size=(80, 7))
    best = np.clip(-0.4 * known[:, 0], -0.5, 0.5)
    outcomes = 1 - np.abs(np.array(BALANCES) - best[:, None])
    chosen = compatibility.choose_automatic(known[:40], outcomes[:40], BALANCES)
    assert chosen.feature == 0
    assert chosen.slope == pytest.approx(-0.4)
    fixed = outcomes[40:].mean(axis=0).max()
    assert compatibility.reached(outcomes[40:], chosen.of(known[40:], BALANCES)) > fixed + 0.1


def test_where_no_feature_helps_the_balance_is_fixed() -> None:
    outcomes = np.tile(np.array([0.1, 0.2, 0.9, 0.2, 0.1]), (10, 1))
    known = np.random.default_rng(3).normal(size=(10, 7))
    chosen = compatibility.choose_automatic(known, outcomes, BALANCES)
    assert (chosen.slope, chosen.start) == (0.0, 0.0)


def test_prediction_is_fitted_on_one_half_and_tried_on_the_other() -> None:
    chance = np.random.default_rng(4)

    def half() -> prediction.Known:
        known = chance.normal(size=(40, 7))
        best = np.clip(-0.4 * known[:, 0], -0.5, 0.5)
        good = 0.6 + 0.1 * np.tanh(known[:, 3])
        return prediction.Known(known, good[:, None] - 0.3 * np.abs(np.array(BALANCES) - best[:, None]))

    development, test = half(), prediction.together([half(), half()])
    assert (test.features.shape, test.outcomes.shape) == ((80, 7), (80, 5))
    found = prediction.predict(development, test, BALANCES)
    assert max(found.alone, key=lambda name: abs(found.alone[name])) == compatibility.FEATURES[3]
    assert found.index > 0.5
    assert found.automatic_reached > found.fixed_reached
    assert f"{found.index:+.2f}" in prediction.told(found)
