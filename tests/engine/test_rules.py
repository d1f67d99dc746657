"""Every rule against its formula written down slowly, and what balance and guidance do to each."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from klora.rules import RULES, unconditional_factors
from klora.schedule import Moment
from klora.scores import ENERGY, TOP_K_SUM, TOTAL, Scores, energy
from klora.settings import Settings
from tests.engine import slow_rules as slow
from tests.engine.planners import planner_of, scores_of
from tests.published import published

quick = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
positive = st.floats(1e-3, 1e3)
balances = st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(-1, 1))


@st.composite
def random_scores(draw: st.DrawFn) -> Scores:
    row = st.tuples(positive, positive, positive, positive)
    return scores_of(draw(st.lists(row, min_size=1, max_size=6)))


moments = st.tuples(st.integers(0, 20), st.integers(1, 21)).filter(lambda pair: pair[0] < pair[1])

#: What each rule may be set to, beside balance.
CONTEST = {
    "schedule": st.sampled_from(["S", "S*"]),
    "alpha": st.floats(0.1, 4),
    "beta": st.one_of(st.just("0"), st.floats(0, 4).map(repr)),
    "gamma": st.sampled_from(["paper", "published", "off"]),
    "keep": st.floats(0, 1),
    "tau": st.floats(0.05, 10),
    "head_start": st.floats(0.1, 20),
    "similarity": st.floats(0, 1),
    "turn": st.integers(1, 7).map(float),
    "until": st.floats(0, 1),
    "coin_seed": st.integers(0, 99).map(float),
    **{f"{role}_{end}": st.floats(0, 3) for role in ("content", "style") for end in ("from", "to")},
}
values_of = st.fixed_dictionaries(CONTEST)


def slow_layers(scores: Scores) -> list[slow.Layer]:
    tables = [scores.measured[name].tolist() for name in (TOP_K_SUM, TOTAL, ENERGY)]
    return [slow.Layer(*map(tuple, rows)) for rows in zip(*tables, strict=True)]


def engine_shares(scores: Scores, wanted: Settings, step: int, steps: int) -> list[tuple[float, float]]:
    shares = planner_of(scores, wanted).shares(Moment(step, steps)).conditional
    return [tuple(one) for one in shares.tolist()]


def clear(sides: list[slow.Pair]) -> None:
    """Where both sides are equal but for rounding, either answer is right."""
    assume(all(abs(c - s) > 1e-9 * max(c, s) for c, s in sides if math.isfinite(s)))


def off_the_jump(values: dict[str, object], t: float) -> None:
    turn = t + float(values["beta"]) / values["alpha"]
    assume(values["schedule"] == "S" or abs(turn - round(turn)) > 1e-9)


@quick
@given(random_scores(), values_of, balances, moments)
def test_k_lora(scores: Scores, values: dict[str, object], balance: float, at: tuple[int, int]) -> None:
    told = {**values, "balance": balance}
    t = slow.progress(*at)
    sides = slow.k_lora_sides(slow_layers(scores), told, t)
    clear(sides)
    off_the_jump(values, t)
    expected = [slow.winner_takes(one, values["keep"], balance) for one in sides]
    found = engine_shares(scores, published(rule="K-LoRA", **told), *at)
    assert np.allclose(found, expected, rtol=1e-12, atol=1e-12)


@quick
@given(random_scores(), values_of, balances, moments)
def test_smooth(scores: Scores, values: dict[str, object], balance: float, at: tuple[int, int]) -> None:
    told = {**values, "balance": balance}
    t = slow.progress(*at)
    off_the_jump(values, t)
    expected = [slow.smooth(one, values["tau"]) for one in slow.k_lora_sides(slow_layers(scores), told, t)]
    found = engine_shares(scores, published(rule="smooth", **told), *at)
    assert np.allclose(found, expected, rtol=1e-9, atol=1e-9)


@quick
@given(random_scores(), values_of, balances, moments)
def test_steady(scores: Scores, values: dict[str, object], balance: float, at: tuple[int, int]) -> None:
    without_time = {**values, "balance": balance, "schedule": "S", "alpha": 0.0, "beta": "1"}
    sides = slow.k_lora_sides(slow_layers(scores), without_time, 0.0)
    ahead = [(content * values["head_start"], style) for content, style in sides]
    expected = [slow.smooth(one, values["tau"]) for one in ahead]
    found = engine_shares(scores, published(rule="steady", **{**values, "balance": balance}), *at)
    assert np.allclose(found, expected, rtol=1e-9, atol=1e-9)


@quick
@given(random_scores(), values_of, moments)
def test_a_head_start_of_4_is_a_balance_of_minus_0_6(
    scores: Scores, values: dict[str, object], at: tuple[int, int]
) -> None:
    ahead = engine_shares(scores, published(rule="steady", **{**values, "head_start": 4}), *at)
    told = {**values, "head_start": 1, "balance": -0.6}
    assert np.allclose(ahead, engine_shares(scores, published(rule="steady", **told), *at), atol=1e-9)


@quick
@given(random_scores(), values_of, balances, moments)
def test_est(scores: Scores, values: dict[str, object], balance: float, at: tuple[int, int]) -> None:
    told = {**values, "balance": balance}
    sides = slow.est_sides(slow_layers(scores), told, slow.progress(*at))
    clear(sides)
    expected = [slow.winner_takes(one, values["keep"], balance) for one in sides]
    found = engine_shares(scores, published(rule="EST", **told), *at)
    assert np.allclose(found, expected, rtol=1e-12, atol=1e-12)


@quick
@given(random_scores(), values_of, balances, moments, st.sampled_from(["step", "noise"]), st.floats(0, 1))
def test_weights(
    scores: Scores,
    values: dict[str, object],
    balance: float,
    at: tuple[int, int],
    clock: str,
    noise: float,
) -> None:
    told = {**values, "balance": balance}
    wanted = published(rule="weights", clock=clock, **told)
    shares = planner_of(scores, wanted).shares(Moment(*at, noise)).conditional
    expected = slow.weights(told, noise if clock == "noise" else slow.progress(*at))
    assert np.allclose(shares, [expected] * len(scores.layers), rtol=1e-12, atol=1e-12)


def test_constant_weights_are_exactly_what_was_written() -> None:
    wanted = published(rule="weights", content_from=0.6, content_to=0.6, style_from=0.9, style_to=0.9)
    for step in range(7):
        assert engine_shares(scores_of([(1, 1, 1, 1)]), wanted, step, 7) == [(0.6, 0.9)]


@quick
@given(st.integers(1, 7), moments)
def test_turns(turn: int, at: tuple[int, int]) -> None:
    found = engine_shares(scores_of([(1, 1, 1, 1)] * 2), published(rule="turns", turn=turn), *at)
    assert found == [slow.turns(turn, at[0])] * 2


def test_balance_gives_steps_of_a_round_to_the_other_lora() -> None:
    def letters(balance: float) -> str:
        wanted = published(rule="turns", turn=4, balance=balance)
        shares = [engine_shares(scores_of([(1, 1, 1, 1)]), wanted, step, 16)[0] for step in range(16)]
        return "".join("C" if one == (1, 0) else "S" for one in shares)

    assert letters(0) == "CCCCSSSSCCCCSSSS"
    assert letters(0.5) == "CCSSSSSSCCSSSSSS"
    assert letters(-0.25) == "CCCCCSSSCCCCCSSS"


@quick
@given(st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 1.0]), moments)
def test_time_only(until: float, at: tuple[int, int]) -> None:
    wanted = published(rule="time only", until=until)
    exact = slow.Fraction(str(until))  # the decimal that the user wrote, not the nearest binary number
    assert engine_shares(scores_of([(1, 1, 1, 1)]), wanted, *at) == [slow.time_only(exact, *at)]


@pytest.mark.parametrize("balance", [-0.6, 0.0, 0.3])
def test_a_coin_falls_as_often_as_balance_says(balance: float) -> None:
    layers, steps = 500, 10
    wanted = published(rule="coin", balance=balance, coin_seed=7)
    scores = scores_of([(1, 1, 1, 1)] * layers)
    shares = np.array([engine_shares(scores, wanted, step, steps) for step in range(steps)])
    assert (shares.sum(axis=2) == 1).all()
    chance = (1 - balance) / 2
    deviation = math.sqrt(chance * (1 - chance) / (layers * steps))
    assert abs(shares[:, :, 0].mean() - chance) < 5 * deviation
    assert not np.array_equal(shares[0], shares[1])


def test_a_kept_part_gives_no_layer_to_the_loser_of_same_share() -> None:
    scores = scores_of([(1, 10, 1, 1), (10, 1, 1, 1)] * 3)
    for keep in (0, 0.7):
        wanted = published(rule="same share", keep=keep)
        leads = [engine_shares(scores, wanted, step, 10)[0][0] == 1 for step in range(10)]
        assert leads == [True] * 5 + [False] * 5


# --- Balance --------------------------------------------------------------------------------------

every_rule = st.sampled_from(RULES)


@quick
@given(every_rule, random_scores(), values_of, st.tuples(balances, balances), moments)
def test_more_balance_is_never_more_content_nor_less_style(
    rule: object, scores: Scores, values: dict[str, object], pair: tuple[float, float], at: tuple[int, int]
) -> None:
    low, high = (
        np.array(engine_shares(scores, published(rule=rule.name, balance=balance, **values), *at))
        for balance in sorted(pair)
    )
    assert (high[:, 0] <= low[:, 0] + 1e-12).all()
    assert (high[:, 1] >= low[:, 1] - 1e-12).all()


@quick
@given(every_rule, random_scores(), values_of, moments, st.sampled_from([-1, 1]))
def test_the_ends_of_balance_are_one_lora_alone(
    rule: object, scores: Scores, values: dict[str, object], at: tuple[int, int], end: int
) -> None:
    shares = engine_shares(scores, published(rule=rule.name, balance=end, **values), *at)
    own = slow.weights({**values, "balance": 0.0}, slow.progress(*at)) if rule.name == "weights" else (1, 1)
    wanted = (own[0], 0) if end < 0 else (0, own[1])
    assert np.allclose(shares, [wanted] * len(shares), rtol=1e-12, atol=0)


@pytest.mark.parametrize("rule", ["K-LoRA", "smooth", "EST"])
def test_a_style_of_zeros_wins_no_layer_at_any_balance(rule: str) -> None:
    scores = scores_of([(1, 0, 1, 0), (1, 1, 1, 1)])
    for balance in (-1, 0, 0.5, 1):
        assert engine_shares(scores, published(rule=rule, balance=balance), 3, 9)[0] == (1, 0)


@quick
@given(random_scores(), values_of, moments)
def test_keep_1_is_adding(scores: Scores, values: dict[str, object], at: tuple[int, int]) -> None:
    for rule in ("K-LoRA", "EST"):
        wanted = published(rule=rule, **{**values, "keep": 1})
        assert engine_shares(scores, wanted, *at) == [(1, 1)] * len(scores.layers)


# --- Energy ---------------------------------------------------------------------------------------


@quick
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
def test_energy_is_that_of_the_gram_matrices(seed: int, rank: int, out: int, inside: int) -> None:
    numbers = np.random.default_rng(seed)
    up, down = numbers.normal(size=(out, rank)), numbers.normal(size=(rank, inside))
    dense = torch.tensor(0.5 * up @ down)
    expected = slow.gram_energy(up.tolist(), down.tolist(), 0.5)
    assert energy(dense.abs()) == pytest.approx(expected, rel=1e-9, abs=1e-12)


# --- Guidance -------------------------------------------------------------------------------------


@quick
@given(st.floats(1.01, 30), st.floats(1, 30))
def test_the_style_counts_e_times_whatever_the_guidance_is(g: float, e: float) -> None:
    unconditional = unconditional_factors(repr(e), g) or (1.0, 1.0)
    content, style = slow.guided(unconditional, (1, 1), g)
    assert content == 1
    assert style == pytest.approx(min(e, g), rel=1e-9)


@pytest.mark.parametrize(
    ("guidance", "counts"),
    [("both", (1, 1)), ("content", (1, 7)), ("none", (7, 7)), ("1", (1, 1)), ("4x", (4, 4)), ("9x", (7, 7))],
)
def test_words_of_guidance(guidance: str, counts: tuple[float, float]) -> None:
    unconditional = unconditional_factors(guidance, 7.0) or (1.0, 1.0)
    assert slow.guided(unconditional, (1, 1), 7.0) == counts


@pytest.mark.parametrize("guidance", ["both", "content", "none", "3"])
@pytest.mark.parametrize("g", [None, 1.0, 0.5])
def test_without_an_unconditional_pass_nothing_changes(guidance: str, g: float | None) -> None:
    assert unconditional_factors(guidance, g) is None


@quick
@given(every_rule, random_scores(), values_of, moments, st.floats(1.5, 20), st.floats(1, 20))
def test_unconditional_shares_are_parts_of_the_conditional_ones(
    rule: object, scores: Scores, values: dict[str, object], at: tuple[int, int], g: float, e: float
) -> None:
    wanted = published(rule=rule.name, guidance=repr(e), **values)
    shares = planner_of(scores, wanted).shares(Moment(*at, None, g))
    both = shares.conditional if shares.unconditional is None else shares.unconditional
    assert np.array_equal(both[:, 0], shares.conditional[:, 0])
    counted = both[:, 1] + g * (shares.conditional[:, 1] - both[:, 1])
    assert np.allclose(counted, min(e, g) * shares.conditional[:, 1], rtol=1e-9, atol=1e-9)
