"""Patches with another strength, whatever else stands in them and in which order."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from klora.hosts.forge_family.cast_patches import CastPatches
from klora.hosts.forge_family.strength import Strengths

DELTA = torch.tensor([[1.0, -2.0], [0.5, 4.0]])
NAME = "diffusion_model.a.weight"


def host_of(strength: int, of_base: int) -> Any:
    """What a host whose patches have their strength at one place, the base's factor at another, adds."""

    def added(patch: Any, name: str) -> Tensor:
        assert name == NAME
        delta: Tensor = next(member for member in patch if isinstance(member, Tensor))
        found: Tensor = torch.zeros(2, 2) * patch[of_base] + patch[strength] * delta
        return found

    return added


@given(
    places=st.permutations(range(5)),
    strength=st.floats(0.01, 10),
    of_base=st.floats(0.5, 2),
    share=st.floats(-3, 3),
    is_list=st.booleans(),
)
def test_the_strength_is_found_by_asking(
    places: list[int], strength: float, of_base: float, share: float, is_list: bool
) -> None:
    members: list[Any] = [None] * 5
    for place, member in zip(places, (strength, of_base, DELTA, None, True), strict=True):
        members[place] = member
    patch = members if is_list else tuple(members)
    scaled = Strengths(host_of(places[0], places[1])).times(patch, share, NAME)
    assert type(scaled) is type(patch)
    assert scaled[places[0]] == strength * share
    for place in places[1:]:
        assert scaled[place] is patch[place]
    assert patch == members or patch == tuple(members)  # the host's own patch is not written into


def test_the_host_is_asked_once_for_each_layout() -> None:
    asked = []

    def added(patch: Any, name: str) -> Tensor:
        asked.append(patch)
        found: Tensor = host_of(0, 2)(patch, name)
        return found

    strengths = Strengths(added)
    assert strengths.times((1.0, DELTA, 1.0), 0.5, NAME)[0] == 0.5
    first = len(asked)
    assert strengths.times((2.0, DELTA, 1.0), 0.5, NAME)[0] == 1.0
    assert strengths.times((2.0, DELTA), 0.5, NAME)[0] == 1.0  # the only number: nothing to ask
    assert len(asked) == first == 2


def test_a_patch_that_adds_nothing_keeps_adding_nothing() -> None:
    strengths = Strengths(host_of(0, 2))
    assert strengths.times((0.0, DELTA, 1.0), 0.5, NAME) == (0.0, DELTA, 1.0)
    assert strengths.times((1.0, DELTA, 1.0), 0.5, NAME)[0] == 0.5  # and is no answer for others


def test_no_number_doubles_what_a_replacement_sets() -> None:
    """A patch that sets the weight whatever its strength: the first number is as good as any."""
    strengths = Strengths(lambda patch, _: DELTA.clone())
    assert strengths.times((1.0, DELTA, 1.0), 0.5, NAME)[0] == 0.5


@pytest.fixture
def patches() -> CastPatches:
    """Three files, of which the first two are the cast; the second was given another strength since."""
    fox, ink, oak = (
        [1.0, ("lora", (torch.randn(2, 1), torch.randn(1, 2))), 1.0, None, None] for _ in range(3)
    )
    stronger = [0.3, *ink[1:]]
    table = {NAME: [fox, oak, stronger], "other": [oak]}
    return CastPatches(table, [{NAME: [fox]}, {NAME: [ink]}], Strengths(host_of(0, 2)))


def test_patches_by_shares(patches: CastPatches) -> None:
    fox, oak, ink = patches.weighted((1.0, 1.0), NAME)
    assert [oak] == patches.weighted((0.0, 0.0), NAME)
    assert [one is two for one, two in zip(patches.weighted((1.0, 0.0), NAME), (fox, oak), strict=True)]
    half = CastPatches({NAME: [fox, oak]}, [{NAME: [fox]}], Strengths(lambda patch, _: patch[0] * DELTA))
    weighted = half.weighted((0.5,), NAME)
    assert weighted[0][0] == 0.5
    assert weighted[0][1] is fox[1]
    assert weighted[1] is oak
    assert fox[0] == 1.0
    assert patches.weighted((0.5, 0.5), "other") == [oak]
    assert patches.weighted((0.5, 0.5), "nothing") == []
    assert ink[0] == 0.3


def test_what_each_file_changes_and_how_strongly(patches: CastPatches) -> None:
    assert patches.touched == ({NAME}, {NAME})
    assert [patch[0] for patch in patches.own(1, NAME)] == [0.3]
    assert patches.strengths(0) != patches.strengths(1)


@given(st.permutations([f"layer {number}" for number in range(6)]))
def test_strengths_do_not_depend_on_the_order_of_the_layers(names: list[str]) -> None:
    """The hosts go through a set of names, whose order is another in each process."""
    patch = [1.0, ("lora", (torch.randn(2, 1), torch.randn(1, 2))), 1.0, None, None]

    def strengths(order: Sequence[str]) -> Hashable:
        table = {name: [patch] for name in order}
        return CastPatches(table, [table], Strengths(host_of(0, 2))).strengths(0)

    assert strengths(names) == strengths(sorted(names))
    assert strengths(names[1:]) != strengths(names)
