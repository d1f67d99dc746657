"""Where a call stands in its pass, for the calls that real samplers make."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klora.schedule import Position

SIGMA_MAX, SIGMA_MIN = 14.6146, 0.0292


def karras(steps: int) -> list[float]:
    """The sigmas of a Karras schedule (rho 7) and the final 0, as a sampler gets them."""
    high, low = SIGMA_MAX ** (1 / 7), SIGMA_MIN ** (1 / 7)
    return [(high + step / (steps - 1) * (low - high)) ** 7 for step in range(steps)] + [0.0]


def heun(sigmas: list[float]) -> list[float]:
    """Each step is called at its own level and, but for the last, at the next one."""
    return [level for pair in pairwise(sigmas) for level in pair if level > 0]


def dpm2(sigmas: list[float]) -> list[float]:
    """Each step but the last is called at its own level and at the geometric middle to the next."""
    calls = []
    for here, there in pairwise(sigmas):
        calls += [here] if there == 0 else [here, math.sqrt(here * there)]
    return calls


def run(position: Position, calls: list[float]) -> list[int]:
    # Hosts compute levels in float32, and the calls come back a little off.
    return [position.advance(level * (1 + 1e-6 * (-1) ** at)) for at, level in enumerate(calls)]


@pytest.mark.parametrize("steps", [2, 4, 20, 50])
def test_euler_steps_once_a_call(steps: int) -> None:
    sigmas = karras(steps)
    position = Position(sigmas, steps)
    assert run(position, sigmas[:-1]) == list(range(steps))
    assert position.steps == steps


def test_heun_second_call_belongs_to_the_level_it_is_made_at() -> None:
    sigmas = karras(4)
    calls = heun(sigmas)
    assert len(calls) == 7
    assert run(Position(sigmas, 4, 8), calls) == [0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("steps", [4, 20])
def test_dpm2_midpoints_belong_to_the_step_they_start_from(steps: int) -> None:
    sigmas = karras(steps)
    expected = [step for step in range(steps) for _ in range(2)][:-1]
    assert run(Position(sigmas, steps, 2 * steps), dpm2(sigmas)) == expected


def test_dpm_adaptive_reaches_the_end_whatever_it_calls() -> None:
    """87 calls for 4 steps: thirds of a growing stride in log sigma, some strides refused and redone."""
    at, stride, calls = math.log(SIGMA_MAX), 0.05, []
    while len(calls) < 86:
        for part in (0, 1 / 3, 2 / 3):
            calls.append(math.exp(max(at - part * stride, math.log(SIGMA_MIN))))
        if len(calls) % 4:  # else refused: the same stride again, shorter
            at -= stride
            stride *= 1.12
    calls.append(SIGMA_MIN)
    steps = run(Position(karras(4), 4, 4), calls)
    assert set(steps) == {0, 1, 2, 3}
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, 3)
    assert 5 < steps.count(0) < 80


def timesteps(steps: int) -> list[int]:
    """A1111's timesteps for DDIM, PLMS and UniPC."""
    return [min(at + 1, 999) for at in range(0, 1000, 1000 // steps)]


def test_ddim_makes_one_call_less_than_steps() -> None:
    told = timesteps(4)
    calls = [float(level) for level in reversed(told[1:])]
    # The host's script of a pass leaves out the smallest timestep, at which DDIM makes no call.
    position = Position(told[1:], 4)
    assert run(position, calls) == [0, 1, 2]
    assert position.steps == 3


def test_unipc_calls_stand_beside_the_timesteps() -> None:
    steps = run(Position(timesteps(4)[1:], 4), [999.0, 749.25, 499.5, 249.75])
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, 2)


@pytest.mark.parametrize(("strength_steps", "steps"), [(4, 6), (2, 6), (11, 20), (1, 20)])
def test_img2img_starts_in_mid_schedule_and_counts_its_own_steps(strength_steps: int, steps: int) -> None:
    sigmas = karras(steps)
    calls = sigmas[-1 - strength_steps : -1]
    position = Position(sigmas, steps)
    assert run(position, calls) == list(range(strength_steps))
    assert position.steps == strength_steps


def test_ddim_in_img2img() -> None:
    told = timesteps(20)
    position = Position(told[1:], 20)
    calls = [float(level) for level in reversed(told[1:11])]
    assert run(position, calls) == list(range(10))
    assert position.steps == 10


def test_restart_goes_back_up_in_noise_but_not_in_time() -> None:
    sigmas = karras(10)
    calls = heun(sigmas[:8]) + heun(sigmas[3:8]) + heun(sigmas[4:8]) + heun(sigmas[7:])
    steps = run(Position(sigmas, 10, 20), calls)
    first = len(heun(sigmas[:8]))
    assert steps[first - 1] == steps[first] == 7
    assert steps == sorted(steps)
    assert steps[-1] == 9


@pytest.mark.parametrize(
    ("steps", "calls", "expected"),
    [
        (4, 8, [0, 0, 1, 1, 2, 2, 3, 3, 3]),
        (4, None, [0, 1, 2, 3, 3, 3]),
        (4, 4, [0, 1, 2, 3]),
        (1, 2, [0, 0, 0]),
        (3, 1, [0, 2, 2]),
    ],
)
def test_without_levels_the_share_of_calls_serves(steps: int, calls: int | None, expected: list[int]) -> None:
    position = Position([], steps, calls)
    assert [position.advance(1.0) for _ in expected] == expected
    assert position.steps == steps


levels = st.lists(st.floats(0, 1000), max_size=30)


@given(levels, st.lists(st.floats(0, 2000), min_size=1, max_size=60), st.integers(0, 50), st.integers(0, 99))
def test_a_position_never_goes_back_nor_past_the_end(
    schedule: list[float], calls: list[float], steps: int, total: int
) -> None:
    position = Position(schedule, steps, total)
    told = [position.advance(level) for level in calls]
    assert told == sorted(told)
    assert told[0] >= 0
    assert told[-1] <= position.steps - 1
