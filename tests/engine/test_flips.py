"""How often a layer changes hands."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.planners import plan_of, scores_of
from tests.published import published

amounts = st.one_of(st.just(0.0), st.floats(1e-6, 1e6))
contests = st.lists(st.tuples(amounts, amounts, amounts, amounts), min_size=1, max_size=12)


def changes(plan_choices: list[str], layer: int) -> int:
    letters = [step[layer] for step in plan_choices]
    return sum(before != after for before, after in pairwise(letters))


@settings(max_examples=200, deadline=None)
@given(contests, st.integers(1, 60), st.floats(0, 10), st.floats(0, 10), st.sampled_from(["paper", "off"]))
def test_with_s_a_layer_goes_once_from_content_to_style(
    numbers: list[tuple[float, ...]], steps: int, alpha: float, beta: float, gamma: str
) -> None:
    wanted = published(schedule="S", alpha=alpha, beta=repr(beta), gamma=gamma)
    choices = plan_of(scores_of(numbers), wanted, steps).choices()
    for layer in range(len(numbers)):
        assert changes(choices, layer) <= 1
        assert "SC" not in "".join(step[layer] for step in choices)


@settings(max_examples=200, deadline=None)
@given(contests, st.integers(1, 60), st.floats(0.01, 10), st.floats(0, 0.9999))
def test_with_s_star_a_layer_changes_hands_at_most_twice(
    numbers: list[tuple[float, ...]], steps: int, alpha: float, beta_share: float
) -> None:
    wanted = published(schedule="S*", alpha=alpha, beta=repr(beta_share * alpha))
    plan = plan_of(scores_of(numbers), wanted, steps)
    each = [changes(plan.choices(), layer) for layer in range(len(numbers))]
    assert max(each) <= 2
    assert plan.flips == sum(each)


@pytest.mark.parametrize("schedule", ["S", "S*"])
def test_s_star_does_flip_twice_and_s_once(schedule: str) -> None:
    """The bounds above are reached."""
    scores = scores_of([(1.0, 1.0, 1.0, 1.0)])
    choices = plan_of(scores, published(schedule=schedule), 20).choices()
    assert changes(choices, 0) == (2 if schedule == "S*" else 1)


positive = st.floats(1e-3, 1e3)


@given(st.lists(st.tuples(positive, positive, positive, positive), min_size=1, max_size=12))
def test_content_wins_everything_without_bonus_and_style_with_a_huge_one(
    numbers: list[tuple[float, ...]],
) -> None:
    scores = scores_of(numbers)
    nothing = plan_of(scores, published(alpha=0, beta="0"), 7)
    huge = plan_of(scores, published(alpha=0, beta="1e9", gamma="off"), 7)
    assert nothing.choices() == ["C" * len(numbers)] * 7
    assert huge.choices() == ["S" * len(numbers)] * 7
    assert (nothing.content_share, huge.content_share) == (1.0, 0.0)
