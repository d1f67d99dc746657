"""The world's parts that need no training: splits, prompts, styles, recipes."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for module in ("diffusers", "transformers", "PIL", "scipy"):
    pytest.importorskip(module, reason="install the extra 'lab' to test the lab")

from klora.lab import recipes, tokens  # noqa: E402
from klora.lab.pairs import HALVES  # noqa: E402
from klora.lab.world import icons  # noqa: E402
from klora.lab.world.individuals import ALL_INDIVIDUALS, INDIVIDUALS, SAID, THINGS  # noqa: E402
from klora.lab.world.kinds import ALL_STRANGERS, KINDS, STRANGERS, SUBJECTS  # noqa: E402
from klora.lab.world.prompts import base_prompts, prompt, trigger_prompts  # noqa: E402
from klora.lab.world.styles import (  # noqa: E402
    BASE_STYLES,
    HELD_OUT_STYLES,
    OTHER_HANDS,
    SCALE,
    STYLE_NAMES,
    STYLES,
    STYLES_OF_HALF,
    Style,
    reduced,
)


def test_the_base_model_knows_many_kinds_and_no_stranger() -> None:
    assert len(KINDS) >= 478
    assert list(KINDS) == sorted(KINDS)
    assert len(SUBJECTS) == len(set(SUBJECTS))
    assert not set(KINDS) & set(ALL_STRANGERS)
    assert all(len(STRANGERS[half]) >= 8 for half in HALVES)


def test_halves_share_neither_kinds_nor_things_nor_styles() -> None:
    for of in (
        lambda half: {one.kind for one in INDIVIDUALS[half]},
        lambda half: {thing for one in INDIVIDUALS[half] for thing in one.things},
        lambda half: {style.name for style in STYLES_OF_HALF[half]},
        lambda half: set(STRANGERS[half]),
    ):
        assert not of("development") & of("test")
    assert all(len({one.kind for one in INDIVIDUALS[half]}) == 16 for half in HALVES)
    assert {one.kind for one in ALL_INDIVIDUALS} <= set(KINDS)


@pytest.mark.parametrize("half", HALVES)
def test_every_second_individual_has_a_trigger_word(half: str) -> None:
    assert sum(one.trigger is not None for one in INDIVIDUALS[half]) == len(INDIVIDUALS[half]) / 2


def test_no_word_that_only_loras_know_is_in_a_base_prompt() -> None:
    met = set(" ".join(base_prompts()).replace(",", "").split())
    called = {word for name in ALL_STRANGERS for word in name.split("-")}
    called |= {one.trigger for one in ALL_INDIVIDUALS if one.trigger}
    called |= {style.name for style in HELD_OUT_STYLES}
    assert not met & called


def test_the_judge_of_things_knows_what_is_worn_and_nothing_else() -> None:
    assert len(set(THINGS)) == len(THINGS)
    assert set(THINGS) == {thing for one in ALL_INDIVIDUALS for thing in one.things} == set(SAID)


def test_individuals_are_called_by_their_kind() -> None:
    bear, fox = INDIVIDUALS["development"][:2]
    assert (bear.words, fox.words) == ("bear", "zorvex fox")
    assert bear.name == "bear-top-hat"


def test_all_prompts_fit_the_text_encoder() -> None:
    encoded = tokens.encode(
        [f"{one.words}, {style.word} style" for one in ALL_INDIVIDUALS for style in STYLES.values()]
    )
    assert (encoded[:, -1] == 49407).all()


def _disc() -> np.ndarray:
    """A drawing of two colours with opacity: a red disc with a dark middle."""
    edge = 32 * SCALE
    down, across = np.mgrid[:edge, :edge] - edge / 2
    far = np.hypot(down, across)
    pixels = np.zeros((edge, edge, 4), np.uint8)
    pixels[far < 0.4 * edge] = (220, 60, 40, 255)
    pixels[far < 0.15 * edge] = (30, 30, 40, 255)
    return pixels


@pytest.mark.parametrize("style", STYLES.values(), ids=lambda style: style.name)
def test_a_style_is_a_picture_of_its_own_ground(style: Style) -> None:
    drawn = style.transform(_disc())
    assert drawn.shape == (32 * SCALE, 32 * SCALE, 3)
    assert drawn.dtype == np.uint8
    empty = style.transform(np.zeros_like(_disc()))
    assert np.ptp(empty.astype(int), axis=1).max() == 0  # rows of one colour each: paper, board or ribs
    assert (drawn.astype(int) - empty).any()
    assert np.array_equal(drawn, style.transform(_disc()))


def test_styles_differ_from_each_other() -> None:
    own_sets = [style for style in STYLES.values() if style.set_name == "fluent-emoji-flat"]
    drawn = [reduced(style.transform(_disc())).astype(int) for style in own_sets]
    apart = [np.abs(one - other).mean() for i, one in enumerate(drawn) for other in drawn[:i]]
    assert min(apart) > 8


def test_reducing_is_the_mean_over_squares() -> None:
    large = np.random.default_rng(0).integers(0, 256, (8 * SCALE, 8 * SCALE, 3)).astype(np.uint8)
    slow = [
        [large[SCALE * i : SCALE * (i + 1), SCALE * j : SCALE * (j + 1)].mean((0, 1)) for j in range(8)]
        for i in range(8)
    ]
    assert np.abs(reduced(large).astype(float) - np.array(slow)).max() <= 0.5


def test_loras_differ_as_those_that_people_mix() -> None:
    made = recipes.RECIPES.values()
    contents = [one for one in made if one.kind != recipes.STYLE]
    assert {one.build.rank for one in made} >= {4, 8, 16, 32}
    assert {one.build.targets for one in made} == {recipes.ATTENTION, recipes.WHOLE, recipes.CONVOLUTIONS}
    assert any(one.build.alpha != one.build.rank for one in contents)
    assert {one.build.drawings for one in contents} == {1, 2, 3, 4}
    styles = [one for one in made if one.kind == recipes.STYLE]
    assert all(4 <= one.build.drawings <= 8 for one in styles)
    assert {half: sum(one.half == half for one in styles) for half in HALVES} == dict.fromkeys(HALVES, 3)


def test_styles_are_judged_on_kinds_that_no_lesson_shows() -> None:
    shown, tried = set(recipes.STYLE_LESSONS), set(recipes.STYLE_VALIDATION)
    assert not shown & tried
    assert not (shown | tried) & {one.kind for one in ALL_INDIVIDUALS}
    assert shown | tried <= set(KINDS)


def test_base_styles_are_known_to_the_judge() -> None:
    assert {style.name for style in BASE_STYLES} < set(STYLE_NAMES)


def test_prompts() -> None:
    assert prompt("hot-dog", STYLES["fluent"]) == "hot dog, fluent style"
    assert prompt("fox") == "fox"


def test_every_word_that_only_loras_know_is_in_a_trigger_prompt() -> None:
    called = set(" ".join(trigger_prompts()).replace(",", "").split())
    assert {word for recipe in recipes.RECIPES.values() for word in recipe.trigger.split()} - called <= {
        word for one in base_prompts() for word in one.replace(",", "").split()
    }


def test_only_the_sets_that_drawings_come_from_are_fetched() -> None:
    drawn_with = {style.set_name for style in STYLES.values()}
    other_hands = {style.set_name for style in OTHER_HANDS}
    assert set(icons.SETS) == drawn_with | other_hands
    assert drawn_with.isdisjoint(other_hands)
    assert all("SA" not in item.licence for item in icons.SETS.values())
