"""The engine against the slow formula, on random pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from klora.rules.contest_settings import beta_value
from klora.schedule import Plan, bonus, noise_progress, published_progress, step_progress
from klora.scores import TOP_K_SUM, TOTAL, Scores, gamma, score_layer
from klora.settings import Settings, TopK
from tests.engine.planners import plan_of, scores_of
from tests.engine.slow_formula import SlowLayer, slow_plan
from tests.published import published

TOP_K = ("rank", "1", "3", "25%", "50%", "100%", "1000000", "0.001%")


@st.composite
def random_layers(draw: st.DrawFn) -> list[SlowLayer]:
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    layers = []
    for _ in range(draw(st.integers(1, 6))):
        out, inside = 4 * draw(st.integers(1, 3)), draw(st.integers(1, 6))
        ranks = draw(st.integers(1, 4)), draw(st.integers(1, 4))
        sides = [
            (numbers.normal(size=(out, r)) @ numbers.normal(size=(r, inside)) * 10 ** numbers.uniform(-2, 1))
            .astype(np.float32)
            .tolist()
            for r in ranks
        ]
        layers.append(SlowLayer(*sides, *ranks))
    return layers


def engine_plan(layers: list[SlowLayer], wanted: Settings, steps: int) -> Plan:
    measures = (TOP_K_SUM, TOTAL)
    scored = (
        score_layer(
            f"layer {index}",
            torch.tensor(one.content),
            torch.tensor(one.style),
            TopK.parse(wanted.top_k),
            measures,
            content_rank=one.rank_content,
            style_rank=one.rank_style,
        )
        for index, one in enumerate(layers)
    )
    return plan_of(Scores.of(scored, measures), wanted, steps)


@settings(max_examples=150, deadline=None)
@given(
    layers=random_layers(),
    steps=st.integers(1, 12),
    schedule=st.sampled_from(["S", "S*"]),
    alpha=st.floats(0.1, 4),
    beta=st.floats(0, 4),
    top_k=st.sampled_from(TOP_K),
)
def test_plan_is_that_of_the_slow_formula(
    layers: list[SlowLayer], steps: int, schedule: str, alpha: float, beta: float, top_k: str
) -> None:
    wanted = published(schedule=schedule, alpha=alpha, beta=repr(beta), top_k=top_k)
    plan = engine_plan(layers, wanted, steps)
    slow = slow_plan(layers, steps, schedule, wanted.alpha, beta_value(wanted.values), top_k)
    told = plan.as_json()
    assert told["top_k"] == slow.top_k
    assert told["gamma"] == pytest.approx(slow.gamma, rel=1e-6)
    assert told["content_score"] == pytest.approx(slow.content_score, rel=1e-6)
    assert told["style_score"] == pytest.approx(slow.style_score, rel=1e-6)
    near_zero = [schedule == "S*" and _at_a_jump(alpha, beta, step, steps) for step in range(steps)]
    for letters, margins, at_jump in zip(told["choices"], slow.margins, near_zero, strict=True):
        for letter, margin in zip(letters, margins, strict=True):
            # Where both sides are equal but for rounding, either answer is right.
            assert at_jump or abs(margin) < 1e-6 or letter == ("C" if margin > 0 else "S")


def _at_a_jump(alpha: float, beta: float, step: int, steps: int) -> bool:
    """Whether rounding may decide on which side of S*'s jump this step lies."""
    turns = (step / (steps - 1) if steps > 1 else 0.0) + beta / alpha
    return abs(turns - round(turns)) < 1e-6


@pytest.mark.parametrize("schedule", ["S", "S*"])
def test_an_exact_tie_goes_to_content(schedule: str) -> None:
    layer = SlowLayer([[1.0, -2.0]], [[2.0, 1.0]])
    tied = published(schedule=schedule, alpha=2, beta="1", gamma="off")
    assert engine_plan([layer], tied, 1).choices() == ["C"]
    a_touch_more = tied.replace(beta="1.0001")
    assert engine_plan([layer], a_touch_more, 1).choices() == ["S"]


def test_two_zero_layers_tie_and_a_zero_style_never_wins() -> None:
    zero = SlowLayer([[0.0, 0.0]], [[0.0, 0.0]])
    only_content = SlowLayer([[1.0, 0.0]], [[0.0, 0.0]])
    some_style = SlowLayer([[1.0, 0.0]], [[1e-3, 0.0]])
    choices = engine_plan([zero, only_content, some_style], published(beta="1e9"), 3).choices()
    assert choices == ["CCS"] * 3


def test_published_gamma_drops_outliers_and_layers_without_style() -> None:
    # Ratios 1, 2, 1, 1, 40; their mean is 9, so 40 is dropped; the last layer has no ratio.
    content = np.array([1.0, 2.0, 3.0, 4.0, 40.0, 7.0])
    style = np.array([1.0, 1.0, 3.0, 4.0, 1.0, 0.0])
    assert gamma("published", content, style) == pytest.approx(1.25)
    assert gamma("paper", content, style) == pytest.approx(5.7)
    assert gamma("off", content, style) == 1.0


@pytest.mark.parametrize("kind", ["paper", "published", "off"])
def test_gamma_is_defined_for_a_style_of_zeros(kind: str) -> None:
    assert gamma(kind, np.ones(3), np.zeros(3)) == 1.0


def test_gamma_of_a_plan_is_over_its_layers() -> None:
    scores = scores_of([(1, 1, 6, 2), (1, 1, 1, 8), (1, 1, 5, 1)])
    assert plan_of(scores, published(), 1).gamma == pytest.approx(12 / 11)


def test_clocks_by_hand() -> None:
    assert [step_progress(step, 5) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert step_progress(0, 1) == 0
    assert [noise_progress(at) for at in (999, 499.5, 0, 1200, -3)] == [0, 0.5, 1, 0, 1]
    assert published_progress(0, 2, 3).tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert published_progress(1, 2, 3).tolist() == pytest.approx([4 / 6, 5 / 6, 0])


def test_schedules_by_hand() -> None:
    progress = np.array([0, 0.5, 1])
    assert bonus("S", 1.5, 0.5, progress).tolist() == pytest.approx([0.5, 1.25, 2])
    assert bonus("S*", 1.5, 1.3, progress).tolist() == pytest.approx([1.3, 0.55, 1.3])
