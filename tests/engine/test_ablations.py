"""The ablations keep what they say they keep, and decide by nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.planners import plan_of, scores_of
from tests.published import published

STEPS = 20
CHANCE = np.random.default_rng(5)
SCORES = scores_of(np.column_stack([CHANCE.uniform(0.2, 2, (200, 2)), np.ones((200, 2))]).tolist())


def content_wins(rule: str, **settings: object) -> np.ndarray:
    return plan_of(SCORES, published(rule=rule, **settings), STEPS).content_leads


def test_a_coin_is_fair_and_seeded() -> None:
    thrown = content_wins("coin", coin_seed=3)
    assert abs(thrown.mean() - 0.5) < 0.03
    assert np.array_equal(thrown, content_wins("coin", coin_seed=3))
    assert not np.array_equal(thrown, content_wins("coin", coin_seed=4))
    assert (content_wins("coin", balance=-1).all(), content_wins("coin", balance=1).any()) == (True, False)


def test_shuffled_layers_keep_every_steps_share() -> None:
    planned = content_wins("K-LoRA")
    dealt = content_wins("shuffled layers", coin_seed=1)
    assert np.array_equal(dealt.sum(axis=1), planned.sum(axis=1))
    assert not np.array_equal(dealt, planned)
    assert (np.diff(dealt.astype(int), axis=0) <= 0).all()  # the same lots at each step: as few changes


@pytest.mark.parametrize("rule", ["time only", "same share"])
def test_time_alone_decides_for_all_layers_at_once(rule: str) -> None:
    table = content_wins(rule)
    assert np.array_equal(table, np.repeat(table[:, :1], table.shape[1], axis=1))
    assert (np.diff(table[:, 0].astype(int)) <= 0).all()
    wanted = 0.5 if rule == "time only" else content_wins("K-LoRA").mean()
    assert abs(table.mean() - wanted) <= 0.5 / STEPS
