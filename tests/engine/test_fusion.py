"""The driver of a pass: only what changed is applied, everything is given back, scores are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from klora.errors import LoraFileError, PairError
from klora.schedule import Rule
from klora.settings import Settings
from klora.weights import Fusion, Winner, fusion, prepare
from tests.engine.fake_seam import FakeSeam

#: Flips with S over 5 steps (bonus 0.5 to 2): never, after the start, after the middle, never.
SCORES = {"a.attn1": (9.0, 1.0), "b.attn1": (1.0, 1.5), "c.attn2": (1.5, 1.0), "d.attn2": (1.0, 9.0)}
OFF = Settings(gamma="off", other_layers="fuse")
C, S = Winner.CONTENT, Winner.STYLE


@pytest.fixture(autouse=True)
def _no_scores_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fusion._kept_scores.clear()
    yield
    fusion._kept_scores.clear()


def sample(made: Fusion, steps: int = 5) -> list[int]:
    with made.sampling():
        return [made.at_step(step, steps) for step in range(steps)]


def test_only_layers_whose_winner_changed_are_applied() -> None:
    seam = FakeSeam(SCORES)
    made = prepare(seam, OFF)
    touched = sample(made)
    assert seam.told[0] == {"a.attn1": C, "b.attn1": C, "c.attn2": C, "d.attn2": S}
    assert seam.told[1:] == [{"b.attn1": S}, {"c.attn2": S}]
    assert touched == [4, 1, 0, 1, 0]
    assert made.changed == 6 == sum(touched)


def test_calling_twice_in_a_step_changes_nothing() -> None:
    made = prepare(FakeSeam(SCORES), OFF)
    with made.sampling():
        assert [made.at_step(step, 5) for step in (0, 0, 1, 1, 1, 2)] == [4, 0, 1, 0, 0, 0]
    assert made.plan().steps == 3


@pytest.mark.parametrize("clock", ["step", "published"])
@pytest.mark.parametrize("schedule", ["S", "S*"])
def test_what_was_recorded_is_what_was_planned(schedule: str, clock: str) -> None:
    wanted = Settings(schedule=schedule, clock=clock)
    made = prepare(FakeSeam(SCORES), wanted)
    sample(made, 9)
    planned = Rule.of(made.rule.scores, wanted).plan(9)
    assert made.plan().choices() == planned.choices()
    assert made.plan().as_json() == planned.as_json()


def test_what_is_applied_at_each_step_is_the_plan() -> None:
    seam = FakeSeam(SCORES)
    made = prepare(seam, Settings(schedule="S*", gamma="off"))
    planned = made.rule.plan(30)
    with made.sampling():
        for step, letters in enumerate(planned.choices()):
            made.at_step(step, 30)
            assert "".join("C" if seam.now[layer] is C else "S" for layer in planned.layers) == letters


def test_progress_by_noise_is_recorded_under_its_step() -> None:
    made = prepare(FakeSeam(SCORES), OFF.replace(clock="noise"))
    with made.sampling():
        for step, progress in enumerate([0.0, 0.25, 0.9]):
            made.at_progress(step, progress)
    assert made.plan().choices() == ["CCCS", "CSCS", "CSSS"]


def test_everything_is_given_back_after_an_exception() -> None:
    seam = FakeSeam(SCORES)
    made = prepare(seam, OFF)

    def interrupted() -> None:
        with made.sampling():
            made.at_step(0, 5)
            assert seam.held == [list(SCORES)]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seam.held == []
    assert seam.now == {}
    assert made.plan().steps == 1


def test_entering_again_applies_every_layer_anew() -> None:
    seam = FakeSeam(SCORES)
    made = prepare(seam, OFF)
    first = sample(made)
    assert sample(made) == first
    assert len(seam.told[0]) == len(seam.told[3]) == len(SCORES)
    assert seam.held == []


@pytest.mark.parametrize(
    ("other_layers", "winner"), [("both", Winner.BOTH), ("content", C), ("style", S), ("none", Winner.NONE)]
)
def test_other_layers_are_fixed_before_the_first_step(other_layers: str, winner: Winner) -> None:
    seam = FakeSeam({**SCORES, "e.ff": (1.0, 1.0), "f.conv": (1.0, 1.0)})
    made = prepare(seam, OFF.replace(other_layers=other_layers))
    assert sample(made) == [4, 1, 0, 1, 0]
    assert seam.told[0] == {"e.ff": winner, "f.conv": winner}
    assert seam.asked == list(SCORES)
    assert made.plan().layers == tuple(SCORES)
    assert set(seam.withheld_ever[0]) == {*SCORES, "e.ff", "f.conv"}


def test_other_layers_compete_under_fuse() -> None:
    seam = FakeSeam({**SCORES, "e.ff": (1.0, 9.0)})
    made = prepare(seam, OFF)
    sample(made)
    assert made.plan().layers == (*SCORES, "e.ff")
    assert seam.told[0]["e.ff"] is S


def test_gamma_is_over_the_contested_layers_only() -> None:
    with_other = {**SCORES, "e.ff": (1000.0, 1.0)}
    fused = prepare(FakeSeam(with_other), Settings(other_layers="fuse")).rule.gamma
    alone = prepare(FakeSeam(with_other), Settings(other_layers="both")).rule.gamma
    assert alone == pytest.approx(12.5 / 12.5)
    assert fused == pytest.approx(1012.5 / 13.5)


def test_scores_are_kept_for_the_same_key() -> None:
    first, second = FakeSeam(SCORES), FakeSeam(SCORES)
    prepare(first, OFF)
    made = prepare(second, Settings(schedule="S*", alpha=2))
    assert first.asked == list(SCORES)
    assert second.asked == []
    assert made.rule.scores.content.tolist() == [9.0, 1.0, 1.5, 1.0]
    assert sample(made)[0] == 4


@pytest.mark.parametrize("changed", ["key", "top_k", "other_layers"])
def test_scores_are_taken_anew_when_what_they_depend_on_changes(changed: str) -> None:
    scores = {**SCORES, "e.ff": (1.0, 1.0)}
    prepare(FakeSeam(scores), OFF)
    seam = FakeSeam(scores, key="other" if changed == "key" else "key")
    change = {"key": {}, "top_k": {"top_k": "3"}, "other_layers": {"other_layers": "both"}}[changed]
    prepare(seam, OFF.replace(**change))
    assert len(seam.asked) == (4 if changed == "other_layers" else 5)


def test_scores_of_the_pairs_used_last_are_kept_and_no_more() -> None:
    for key in range(fusion._MOST_KEPT + 3):
        prepare(FakeSeam(SCORES, key), OFF)
        prepare(FakeSeam(SCORES, 0), OFF)
    assert len(fusion._kept_scores) == fusion._MOST_KEPT
    oldest, in_use = FakeSeam(SCORES, 1), FakeSeam(SCORES, 0)
    prepare(in_use, OFF)
    prepare(oldest, OFF)
    assert (in_use.asked, oldest.asked) == ([], list(SCORES))


def test_progress_sees_each_layer_once() -> None:
    seen: list[str] = []

    def progress(layers):  # type: ignore[no-untyped-def]
        for layer in layers:
            seen.append(layer.name)
            yield layer

    prepare(FakeSeam(SCORES), OFF, progress)
    prepare(FakeSeam(SCORES), OFF, progress)
    assert seen == list(SCORES)


@pytest.mark.parametrize(("side", "name"), [(0, "fox"), (1, "ink")])
def test_nan_is_named_and_not_remembered(side: int, name: str) -> None:
    bad = {**SCORES, "c.attn2": (math.nan, 1.0) if side == 0 else (1.0, math.nan)}
    for _ in range(2):
        with pytest.raises(LoraFileError, match=rf"{name}.*c\.attn2.*NaN"):
            prepare(FakeSeam(bad), OFF)


@pytest.mark.parametrize("scores", [{}, {"e.ff": (1.0, 1.0)}])
def test_a_pair_without_a_shared_attention_layer_is_refused(scores: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(PairError, match=r"fox and ink share no attention layer.*pick two"):
        prepare(FakeSeam(scores), OFF)
