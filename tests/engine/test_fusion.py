"""The driver of a pass: only what changed is applied, everything is given back, scores are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from klora.errors import LoraFileError, PairError
from klora.planning import Cast, Member, forget_scores, kept_scores, scoring
from klora.schedule import LayerShares, Moment, Span, Window, evenly_spaced
from klora.weights import Fusion, prepare
from tests.engine.fake_seam import FakeSeam
from tests.published import published

#: Flips with S over 5 steps (bonus 0.5 to 2): never, after the start, after the middle, never.
SCORES = {"a.attn1": (9.0, 1.0), "b.attn1": (1.0, 1.5), "c.attn2": (1.5, 1.0), "d.attn2": (1.0, 9.0)}
OFF = published(gamma="off", other_layers="fuse")
PAIR = Cast.of_pair("fox", "ink")
C, S, BOTH, NONE = (LayerShares(shares) for shares in ((1, 0), (0, 1), (1, 1), (0, 0)))


@pytest.fixture(autouse=True)
def _no_scores_kept() -> Iterator[None]:
    forget_scores()
    yield
    forget_scores()


def sample(made: Fusion, steps: int = 5) -> list[int]:
    with made.sampling():
        return [made.at(Moment(step, steps)) for step in range(steps)]


def test_only_layers_whose_shares_changed_are_applied() -> None:
    seam = FakeSeam(SCORES)
    made = prepare(seam, PAIR, OFF)
    touched = sample(made)
    assert seam.told[0] == {"a.attn1": C, "b.attn1": C, "c.attn2": C, "d.attn2": S}
    assert seam.told[1:] == [{"b.attn1": S}, {"c.attn2": S}]
    assert touched == [4, 1, 0, 1, 0]
    assert made.changed == 6 == sum(touched)


@pytest.mark.parametrize("schedule", ["S", "off"])
def test_what_a_pass_is_expected_to_begin_with_and_whether_it_lasts(schedule: str) -> None:
    """With S, two layers flip over five steps, and none in the first two of them."""
    settings = OFF.replace(rule="K-LoRA" if schedule == "S" else "steady", head_start=1.0)
    made = prepare(FakeSeam(SCORES), PAIR, settings)
    moments = [Moment(step, 5) for step in range(5)]
    expected = made.expected(moments)
    assert expected.shares == {
        layer.name: made.planner.shares(moments[0]).of_layer(place)
        for place, layer in enumerate(made.planner.layers)
    }
    assert expected.lasts() == (schedule == "off")
    assert made.expected(moments[:1]).lasts()


def test_calling_twice_in_a_step_changes_nothing() -> None:
    made = prepare(FakeSeam(SCORES), PAIR, OFF)
    with made.sampling():
        assert [made.at(Moment(step, 5)) for step in (0, 0, 1, 1, 1, 2)] == [4, 0, 1, 0, 0, 0]
    assert made.plan().steps == 3


@pytest.mark.parametrize("is_planned", [False, True])
@pytest.mark.parametrize("clock", ["step", "published"])
@pytest.mark.parametrize("schedule", ["S", "S*"])
def test_what_was_recorded_is_what_was_planned(schedule: str, clock: str, is_planned: bool) -> None:
    made = prepare(FakeSeam(SCORES), PAIR, published(schedule=schedule, clock=clock))
    moments = [Moment(step, 9) for step in range(9)]
    if is_planned:
        made.begin(moments)
    sample(made, 9)
    assert made.plan().as_json() == made.planner.plan(moments).as_json()


def test_what_is_applied_at_each_step_is_the_plan() -> None:
    seam = FakeSeam(SCORES)
    made = prepare(seam, PAIR, published(schedule="S*", gamma="off"))
    planned = made.planner.plan(evenly_spaced(30))
    with made.sampling():
        for step, letters in enumerate(planned.choices()):
            made.at(Moment(step, 30))
            assert "".join("C" if seam.now[layer] == C else "S" for layer in planned.layers) == letters


def test_progress_by_noise_is_recorded_under_its_step() -> None:
    made = prepare(FakeSeam(SCORES), PAIR, OFF.replace(clock="noise"))
    with made.sampling():
        for step, progress in enumerate([0.0, 0.25, 0.9]):
            made.at(Moment(step, 3, progress))
    assert made.plan().choices() == ["CCCS", "CSCS", "CSSS"]


def test_everything_is_given_back_after_an_exception() -> None:
    seam = FakeSeam(SCORES)
    made = prepare(seam, PAIR, OFF)

    def interrupted() -> None:
        with made.sampling():
            made.at(Moment(0, 5))
            assert seam.held == [list(SCORES)]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seam.held == []
    assert seam.now == {}
    assert made.plan().steps == 1


def test_entering_again_applies_every_layer_anew() -> None:
    seam = FakeSeam(SCORES)
    made = prepare(seam, PAIR, OFF)
    first = sample(made)
    assert sample(made) == first
    assert len(seam.told[0]) == len(seam.told[3]) == len(SCORES)
    assert seam.held == []


@pytest.mark.parametrize(("other_layers", "shares"), [("content", C), ("style", S), ("none", NONE)])
def test_other_layers_are_fixed_at_the_first_step(other_layers: str, shares: LayerShares) -> None:
    seam = FakeSeam({**SCORES, "e.ff": (1.0, 1.0), "f.conv": (1.0, 1.0)})
    made = prepare(seam, PAIR, OFF.replace(other_layers=other_layers))
    assert sample(made) == [6, 1, 0, 1, 0]
    assert {name: seam.told[0][name] for name in ("e.ff", "f.conv")} == {"e.ff": shares, "f.conv": shares}
    assert seam.asked == list(SCORES)
    assert made.plan().layers == tuple(SCORES)
    assert set(seam.withheld_ever[0]) == {*SCORES, "e.ff", "f.conv"}


def test_layers_that_keep_both_and_layers_of_one_lora_are_left_to_the_host() -> None:
    seam = FakeSeam({**SCORES, "e.ff": (1.0, 1.0)}, alone={"g.attn1": 0, "h.ff": 1})
    sample(prepare(seam, PAIR, OFF.replace(other_layers="both")))
    assert seam.withheld_ever == [list(SCORES)]


def test_other_layers_compete_under_fuse() -> None:
    seam = FakeSeam({**SCORES, "e.ff": (1.0, 9.0)})
    made = prepare(seam, PAIR, OFF)
    sample(made)
    assert made.plan().layers == (*SCORES, "e.ff")
    assert seam.told[0]["e.ff"] == S


def test_gamma_is_over_the_contested_layers_only() -> None:
    with_other = {**SCORES, "e.ff": (1000.0, 1.0)}
    fused = prepare(FakeSeam(with_other), PAIR, published(other_layers="fuse")).plan().gamma
    alone = prepare(FakeSeam(with_other), PAIR, published(other_layers="both")).plan().gamma
    assert alone == pytest.approx(12.5 / 12.5)
    assert fused == pytest.approx(1012.5 / 13.5)


def test_constant_weights_are_read_from_no_delta_and_reach_layers_of_one_lora() -> None:
    seam = FakeSeam({**SCORES, "e.ff": (1.0, 1.0)}, alone={"g.attn1": 0, "h.ff": 1})
    weights = published(rule="weights", content_from=0.6, content_to=0.6, style_from=0.9, style_to=0.9)
    assert sample(prepare(seam, PAIR, weights)) == [7, 0, 0, 0, 0]
    alone = {"g.attn1": LayerShares((0.6, 1)), "h.ff": LayerShares((1, 0.9))}
    assert seam.told[0] == {**dict.fromkeys((*SCORES, "e.ff"), LayerShares((0.6, 0.9))), **alone}
    assert seam.asked == []


def test_a_window_of_the_style_reaches_its_layers_alone() -> None:
    cast = Cast((Member("fox"), Member("ink", Window(Span(stop=0.5)))))
    seam = FakeSeam({"e.ff": (1.0, 1.0), **SCORES}, alone={"g.attn1": 0, "h.ff": 1})
    made = prepare(seam, cast, published(rule="weights"))
    assert sample(made, 4) == [7, 0, 6, 0]
    assert seam.told[1] == {**dict.fromkeys((*SCORES, "e.ff"), C), "h.ff": C}
    assert made.plan().shares[:, -2:].tolist() == [[[1, 0], [0, 1]]] * 2 + [[[1, 0], [0, 0]]] * 2
    added = prepare(FakeSeam({"e.ff": (1.0, 1.0), **SCORES}, alone={"g.attn1": 0}), cast, OFF)
    assert "g.attn1" not in added.layers


def test_guests_alone() -> None:
    cast = Cast((Member("moss", Window(Span(0.5))),), has_pair=False)
    seam = FakeSeam({}, names=("moss",), alone={"a.attn1": 0, "b.ff": 0})
    made = prepare(seam, cast, published())
    assert sample(made, 4) == [2, 0, 2, 0]
    assert [set(told.values()) for told in seam.told] == [{LayerShares((0,))}, {LayerShares((1,))}]
    assert made.plan().loras == ("moss",)


def test_guests_beside_a_pair_have_a_share_of_their_own() -> None:
    cast = Cast((Member("fox"), Member("ink"), Member("moss", Window(Span(0.5)))))
    seam = FakeSeam(SCORES, names=("fox", "ink", "moss"), alone={"z.ff": 2})
    sample(prepare(seam, cast, OFF), 4)
    assert seam.told[0]["a.attn1"] == LayerShares((1, 0, 1))  # which moss does not change
    told = [shares["z.ff"] for shares in seam.told if "z.ff" in shares]
    assert told == [LayerShares((1, 1, 0)), LayerShares((1, 1, 1))]


def test_the_unconditional_rows_get_others_where_the_guidance_has_an_effect() -> None:
    moments = [Moment(0, 1, None, scale) for scale in (7.0, 1.0, None)]
    made = prepare(FakeSeam(SCORES), PAIR, OFF.replace(keep=0.5, guidance="content"))
    told = [made.planner.shares(moment).of_layer(0) for moment in moments]
    assert told == [LayerShares((1, 0.5), (1, 0)), LayerShares((1, 0.5)), LayerShares((1, 0.5))]


def test_scores_are_kept_for_the_same_key() -> None:
    first, second = FakeSeam(SCORES), FakeSeam(SCORES)
    prepare(first, PAIR, OFF)
    made = prepare(second, PAIR, published(schedule="S*", alpha=2))
    assert first.asked == list(SCORES)
    assert second.asked == []
    assert made.plan().as_json()["content_score"] == [9.0, 1.0, 1.5, 1.0]
    assert sample(made)[0] == 4


@pytest.mark.parametrize("changed", ["key", "top_k", "other_layers", "measures"])
def test_scores_are_taken_anew_when_what_they_depend_on_changes(changed: str) -> None:
    scores = {**SCORES, "e.ff": (1.0, 1.0)}
    prepare(FakeSeam(scores), PAIR, OFF)
    seam = FakeSeam(scores, key="other" if changed == "key" else "key")
    change = {
        "key": {},
        "top_k": {"top_k": "3"},
        "other_layers": {"other_layers": "both"},
        "measures": {"rule": "EST"},
    }[changed]
    prepare(seam, PAIR, OFF.replace(**change))
    assert len(seam.asked) == (4 if changed == "other_layers" else 5)


def test_scores_of_the_pairs_used_last_are_kept_and_no_more() -> None:
    for key in range(scoring.MOST_KEPT + 3):
        prepare(FakeSeam(SCORES, key), PAIR, OFF)
        prepare(FakeSeam(SCORES, 0), PAIR, OFF)
    assert kept_scores() == scoring.MOST_KEPT
    oldest, in_use = FakeSeam(SCORES, 1), FakeSeam(SCORES, 0)
    prepare(in_use, PAIR, OFF)
    prepare(oldest, PAIR, OFF)
    assert (in_use.asked, oldest.asked) == ([], list(SCORES))


def test_progress_sees_each_layer_once() -> None:
    seen: list[str] = []

    def progress(layers):  # type: ignore[no-untyped-def]
        for layer in layers:
            seen.append(layer.name)
            yield layer

    prepare(FakeSeam(SCORES), PAIR, OFF, progress)
    prepare(FakeSeam(SCORES), PAIR, OFF, progress)
    assert seen == list(SCORES)


@pytest.mark.parametrize(("side", "name"), [(0, "fox"), (1, "ink")])
def test_nan_is_named_and_not_remembered(side: int, name: str) -> None:
    bad = {**SCORES, "c.attn2": (math.nan, 1.0) if side == 0 else (1.0, math.nan)}
    for _ in range(2):
        with pytest.raises(LoraFileError, match=rf"{name}.*c\.attn2.*NaN"):
            prepare(FakeSeam(bad), PAIR, OFF)


@pytest.mark.parametrize("scores", [{}, {"e.ff": (1.0, 1.0)}])
def test_a_pair_without_a_shared_attention_layer_is_refused(scores: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(PairError, match=r"fox and ink share no attention layer.*pick two"):
        prepare(FakeSeam(scores), PAIR, OFF)
    assert prepare(FakeSeam(scores), PAIR, published(rule="weights")).plan().layers == tuple(scores)


@pytest.mark.parametrize(("absent", "shares"), [(0, S), (1, C)])
def test_a_lora_that_weighs_nothing_leaves_the_contest(absent: int, shares: LayerShares) -> None:
    nothing = dict.fromkeys(SCORES, (0.0, 3.0) if absent == 0 else (3.0, 0.0))
    seam = FakeSeam(nothing)
    sample(prepare(seam, PAIR, published()))
    assert [set(told.values()) for told in seam.told] == [{shares}]
