"""The judges untrained: rules, distortions, views, files, and what is kept out of their lessons."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for module in ("diffusers", "transformers", "PIL", "scipy"):
    pytest.importorskip(module, reason="install the extra 'lab' to test the lab")

from klora.lab import judges, recipes, scoring  # noqa: E402
from klora.lab.judges import UNKNOWN, worn  # noqa: E402
from klora.lab.model import build_autoencoder, in_bytes, to_signed  # noqa: E402
from klora.lab.training import distortion, lessons  # noqa: E402
from klora.lab.training import judges as training  # noqa: E402
from klora.lab.training.autoencoder import disturb, reconstruct  # noqa: E402
from klora.lab.world.icons import Picture  # noqa: E402
from klora.lab.world.individuals import ALL_INDIVIDUALS, THINGS, Placed  # noqa: E402
from klora.lab.world.kinds import ALL_STRANGERS, KINDS, SUBJECTS  # noqa: E402
from klora.lab.world.styles import OTHER_HANDS, STYLE_NAMES, Style  # noqa: E402
from tests.lab import trials  # noqa: E402


def _labels() -> lessons.Drawings:
    """Labels of every subject in every style; the pictures are empty."""
    kind, style = torch.cartesian_prod(torch.arange(len(SUBJECTS)), torch.arange(len(STYLE_NAMES))).T
    empty = torch.zeros(len(kind), 3, 1, 1, dtype=torch.uint8)
    return lessons.Drawings(empty, kind, style, torch.zeros(len(kind), len(THINGS), dtype=torch.long))


def test_one_drawing_of_every_subject_is_kept_out_of_the_judge_of_kinds() -> None:
    drawings = _labels()
    kept = drawings.where(training.kept_out_of_kinds(drawings))
    assert kept.kind.tolist() == list(range(len(SUBJECTS)))
    counts = torch.bincount(kept.style)
    assert int(counts.max() - counts.min()) <= 1


def test_the_judge_of_styles_sees_no_stranger_and_four_kinds_in_five() -> None:
    drawings = _labels()
    learnt = drawings.where(~training.kept_out_of_styles(drawings))
    assert int(learnt.kind.max()) < len(KINDS) == len(SUBJECTS) - len(ALL_STRANGERS)
    assert len(learnt.kind) == len(STYLE_NAMES) * (len(KINDS) - -(-len(KINDS) // 5))


def test_distortions_hang_on_the_generator_alone_and_stay_in_range() -> None:
    seen = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    made = [distortion.distort(seen, torch.Generator().manual_seed(2), colours=True) for _ in range(2)]
    assert torch.equal(*made)
    assert made[0].shape == seen.shape
    assert made[0].abs().max() <= 1
    other = distortion.distort(seen, torch.Generator().manual_seed(3), colours=True)
    assert not torch.allclose(made[0], other, atol=0.1)


def test_recolouring_leaves_half_as_it_is_and_white_paper_white() -> None:
    seen = torch.ones(2000, 3, 4, 4)
    seen[:, 0, 1:3, 1:3] = -0.5
    made = distortion._recolour(seen, torch.Generator().manual_seed(0))
    kept = (made == seen).flatten(1).all(1).float().mean()
    assert 0.4 < kept < 0.55
    ramped = distortion._ramped(seen, torch.Generator().manual_seed(0))
    assert (ramped[:, :, 0] == 1).all()
    assert (ramped[:, :, 1, 1] != 1).any(1).all()


def test_only_the_very_things_count() -> None:
    hat, both = worn(frozenset(THINGS[:1])), worn(frozenset(THINGS[:2]))
    seen = torch.zeros(3, len(THINGS))
    seen[0, 0] = seen[1, :2] = 0.9
    assert judges.same_things(seen, hat.expand(3, -1)).tolist() == [True, False, False]
    assert judges.same_things(seen, both.expand(3, -1)).tolist() == [False, True, False]
    unknown = torch.full((3, len(THINGS)), UNKNOWN)
    assert judges.same_things(seen, unknown).all()


def test_unknown_things_teach_nothing() -> None:
    scores = torch.randn(2, len(THINGS), generator=torch.Generator().manual_seed(0))
    worn_things = torch.zeros(2, len(THINGS), dtype=torch.long)
    worn_things[1, 3] = UNKNOWN
    before = training.thing_loss(scores, worn_things)
    scores[1, 3] += 10
    assert training.thing_loss(scores, worn_things) == before
    plain = torch.nn.functional.binary_cross_entropy_with_logits(scores[:1], worn_things[:1].float())
    assert training.thing_loss(scores[:1], worn_things[:1]) == pytest.approx(float(plain))


def test_of_a_thing_s_scores_the_largest_counts() -> None:
    torch.manual_seed(2)
    finder = judges.ThingFinder().eval()
    pictures = torch.rand(3, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        scores = finder(pictures)
        everywhere = finder.head(finder.body(pictures)).flatten(2)
    assert everywhere.shape == (3, len(THINGS), 64)
    largest = everywhere.amax(2)
    assert (scores >= largest - 1e-5).all()
    assert (scores <= largest + math.log(64) / finder.SHARPNESS + 1e-5).all()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[lessons.Dressed]:
    """What is drawn of dressed kinds; the pictures are empty."""
    shown: list[lessons.Dressed] = []

    def draw(_cache: Path, kind: str, wears: tuple[Placed, ...], _style: Style) -> Picture:
        shown.append((kind, wears))
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(lessons.individuals, "draw", draw)
    return shown


def test_crossed_lessons_show_no_individual_and_nothing_it_could_be_mistaken_for(
    tmp_path: Path, drawn: list[lessons.Dressed]
) -> None:
    """What the judges are tried on stays within a half; the crossed drawings never do."""
    made = lessons.crossed_part(tmp_path, 0)
    shown = [(kind, frozenset(placed.thing for placed in wears)) for kind, wears in drawn]
    assert len(made.kind) == len(shown) == lessons.CROSSED // lessons.CROSSED_PARTS
    tried = {(kind, frozenset(placed.thing for placed in wears)) for kind, wears in trials.tried()}
    assert len(tried) > 5 * len(ALL_INDIVIDUALS)
    assert tried.isdisjoint(shown)
    assert {kind for kind, _ in shown} == {one.kind for one in ALL_INDIVIDUALS}
    for (kind, things), number, row in zip(shown, made.kind.tolist(), made.things, strict=True):
        assert SUBJECTS[number] == kind
        assert row.tolist() == worn(things).tolist()


def test_changed_lessons_show_nothing_that_the_judges_are_tried_on() -> None:
    """A kind of a half with what others of the half wear, but neither its own things nor a trial's."""
    choices = lessons.changed_choices()
    own = {one.kind: one.things for one in ALL_INDIVIDUALS}
    worn_by_half = {
        half: {one.wears for one in of_half} for half, of_half in lessons.individuals.INDIVIDUALS.items()
    }
    half_of = {one.kind: half for half, of_half in lessons.individuals.INDIVIDUALS.items() for one in of_half}
    assert len(choices) > 50
    for kind, wears in choices:
        assert wears in worn_by_half[half_of[kind]]
        assert {placed.thing for placed in wears} != own[kind]
    assert trials.leaks(choices) == []


def test_a_pair_that_is_nearly_a_trial_s_is_refused() -> None:
    """A bear is tried with the fox's glasses. The apple's sit a hundredth higher; no ribbon is near."""
    wears = {one.kind: one.wears for one in ALL_INDIVIDUALS}
    fox, apple, lion = (("bear", wears[kind]) for kind in ("fox", "red-apple", "lion"))
    assert fox in trials.tried()
    assert apple not in trials.tried()
    assert trials.is_near(apple, fox)
    choices = lessons.changed_choices()
    assert apple not in choices
    assert lion in choices


def test_what_is_near_is_said_twice_and_alike() -> None:
    at = ("bear", (Placed("glasses", 0.5, 0.46, 0.66), Placed("ribbon", 0.5, 0.8, 0.3)))
    for kind, across, down, second, expected in (
        ("bear", 0.5, 0.46, "ribbon", True),
        ("bear", 0.69, 0.27, "ribbon", True),
        ("bear", 0.71, 0.46, "ribbon", False),
        ("bear", 0.5, 0.25, "ribbon", False),
        ("bear", 0.5, 0.46, "crown", False),
        ("fox", 0.5, 0.46, "ribbon", False),
    ):
        shown = (kind, (Placed(second, 0.5, 0.8, 0.5), Placed("glasses", across, down, 0.3, 9)))
        assert trials.is_near(shown, at) is expected
        assert lessons._is_near(*shown, [at]) is expected
    assert not trials.is_near(("bear", at[1][:1]), at)
    assert not lessons._is_near("bear", at[1][:1], [at])


@pytest.mark.parametrize(
    "part_of", [lessons.composed_part, lessons.crossed_part, lessons.changed_part, lessons.strewn_part]
)
def test_a_little_moved_no_lesson_comes_near_what_the_judges_are_tried_on(
    part_of: Callable[[Path, int], lessons.Drawings], tmp_path: Path, drawn: list[lessons.Dressed]
) -> None:
    for part in range(3):
        part_of(tmp_path, part)
    assert len(drawn) >= 3 * 500
    assert trials.leaks(drawn) == []


def test_strewn_lessons_show_every_thing_on_every_kind_in_the_styles_of_pairs(
    tmp_path: Path, drawn: list[lessons.Dressed]
) -> None:
    parts = [lessons.strewn_part(tmp_path, part) for part in range(lessons.STREWN_PARTS)]
    assert sum(len(part.kind) for part in parts) == len(drawn) == lessons.STREWN
    kinds = {one.kind for one in ALL_INDIVIDUALS}
    assert {(kind, placed.thing) for kind, wears in drawn for placed in wears} == set(product(kinds, THINGS))
    styles = {STYLE_NAMES[number] for part in parts for number in part.style.tolist()}
    assert styles == set(lessons.JUDGED_STYLES)


def test_other_hands_draw_what_their_set_has_and_in_no_style(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = {("fxemoji", "bear"), ("fxemoji", "crown")}
    monkeypatch.setattr(lessons.icons, "has", lambda _cache, name, icon: (name, icon) not in lacking)

    def drawn(_cache: Path, kinds: tuple[str, ...], style: Style, group: str) -> torch.Tensor:
        assert group == "hands"
        assert {(style.set_name, kind) for kind in kinds}.isdisjoint(lacking)
        return torch.zeros(len(kinds), 3, 1, 1, dtype=torch.uint8)

    monkeypatch.setattr(lessons, "kinds_in_style", drawn)
    made = lessons.by_other_hands(tmp_path)
    counts = torch.bincount(made.kind, minlength=len(SUBJECTS))
    assert counts[SUBJECTS.index("fox")] == len(OTHER_HANDS)
    assert counts[SUBJECTS.index("bear")] == len(OTHER_HANDS) - 2
    assert counts[SUBJECTS.index("turkey")] == len(OTHER_HANDS) - 2, "one set has the country's flag"
    assert (made.style == UNKNOWN).all()
    assert not training.kept_out_of_kinds(made).any()
    assert training.kept_out_of_styles(made).all()
    crown = made.where(made.kind == SUBJECTS.index("crown"))
    assert (crown.things[:, THINGS.index("crown")] == UNKNOWN).all()
    assert (made.things.clamp_min(0) == 0).all()


def test_half_of_the_pictures_are_mirrored_and_the_others_left() -> None:
    seen = torch.rand(400, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    made = training.mirrored(seen, torch.Generator().manual_seed(1))
    is_left = (made == seen).flatten(1).all(1)
    assert torch.equal(made[~is_left], seen[~is_left].flip(-1))
    assert 150 < int(is_left.sum()) < 250


def test_lessons_are_shown_in_shares_and_what_is_kept_out_never() -> None:
    group = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    empty = torch.zeros(7, 3, 1, 1, dtype=torch.uint8)
    number = torch.zeros(7, dtype=torch.long)
    small = training.Reduced(lessons.Drawings(empty, number, number, number[:, None]), empty, empty, group)
    often = small.often({"kinds": 0.4, "composed": 0.4, "hands": 0.2}, torch.tensor([0, 1, 1, 1, 1, 1, 1]))
    assert torch.allclose(often, torch.tensor([0, 0.1, 0.1, 0.1, 0.2, 0.2, 0.2]))


def test_the_judge_of_kinds_sees_nothing_kept_out_dressed_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_out = lessons.Drawings(
        torch.zeros(4, 3, 64, 64, dtype=torch.uint8),
        torch.tensor([0, 1, 0, 1]),
        torch.tensor([0, 0, 0, 0]),  # kind 0 is kept out in style 0
        worn(frozenset(THINGS[:1])).expand(4, -1),
    )
    small = training.Reduced(kept_out, kept_out.drawn, kept_out.drawn, torch.tensor([0, 0, 1, 1]))
    shown: list[int] = []

    def seen(_self: object, chosen: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        shown.extend(chosen.tolist())
        return torch.zeros(len(chosen), 3, 64, 64)

    monkeypatch.setattr(training.Reduced, "seen", seen)
    training.train_kind_judge(tmp_path, small, training.Plan(steps=1, rate=1e-3))
    assert set(shown) == {1, 3}


def test_questions_about_things_are_asked_in_the_styles_of_pairs() -> None:
    asked = _labels().where(lessons.in_judged_styles(_labels()))
    names = {STYLE_NAMES[number] for number in asked.style.tolist()}
    assert names == set(lessons.JUDGED_STYLES)
    assert len(asked.style) == len(SUBJECTS) * len(names)
    assert recipes.CONTENT_STYLE in names


def test_judges_come_back_from_their_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    panel = judges.Judges(judges.SubjectJudge().eval(), judges.style_judge().eval())
    panel.save(tmp_path / "judges.safetensors")
    again = judges.Judges.load(tmp_path / "judges.safetensors")
    drawn = torch.randint(256, (2, 3, 128, 128), dtype=torch.uint8)
    for one, other in zip(panel.kinds_and_things(drawn), again.kinds_and_things(drawn), strict=True):
        assert torch.allclose(one, other, atol=0.02)
    assert torch.allclose(panel.styles(drawn), again.styles(drawn), atol=0.05)


def test_a_score_says_what_the_judges_see() -> None:
    torch.manual_seed(1)
    panel = judges.Judges(judges.SubjectJudge().eval(), judges.style_judge().eval())
    made = torch.randint(256, (3, 3, 128, 128), dtype=torch.uint8)
    recipe = recipes.RECIPES["content-bear-top-hat"]
    found = scoring.score(panel, recipe, "riso", made, made[0])
    assert set(found) == set(scoring.MEASURES)
    kinds, _ = panel.kinds_and_things(made)
    assert found["kind"].tolist() == (kinds.argmax(1) == SUBJECTS.index("bear")).float().tolist()
    assert found["style_probability"].tolist() == panel.styles(made)[:, STYLE_NAMES.index("riso")].tolist()
    assert found["both"].tolist() == (found["identity"] * found["style"]).tolist()
    assert float(found["distance"][0]) == pytest.approx(0, abs=1e-5)


def test_a_weight_in_eight_bits_is_off_by_half_a_step_at_most() -> None:
    value = (
        torch.randn(7, 3, 2, 2, generator=torch.Generator().manual_seed(3))
        * torch.logspace(-4, 2, 7)[:, None, None, None]
    )
    value[2] = 0
    whole, step = judges._in_eight_bits(value)
    assert whole.dtype == torch.int8
    assert step.shape == (7, 1, 1, 1)
    largest = value.flatten(1).abs().amax(1)[:, None, None, None]
    assert ((whole.float() * step - value).abs() <= largest / 254 * 1.001 + 1e-7).all()


def test_views_are_the_drawings_softened_or_disturbed() -> None:
    torch.manual_seed(4)
    autoencoder = build_autoencoder().eval().requires_grad_(False)
    drawn = torch.randint(256, (6, 3, 64, 64), dtype=torch.uint8)
    seen = training.views(autoencoder, drawn, seed=1)
    soft = [in_bytes(reconstruct(autoencoder, to_signed(one[None])))[0] for one in drawn]
    apart = [int((one.int() - other.int()).abs().max()) for one, other in zip(seen, soft, strict=True)]
    softened = [one <= 1 for one in apart]
    assert any(softened)
    assert not all(softened)
    assert torch.equal(seen, training.views(autoencoder, drawn, seed=1))
    assert not torch.equal(seen, training.views(autoencoder, drawn, seed=2))


def test_undisturbed_latents_give_the_reconstruction() -> None:
    torch.manual_seed(5)
    autoencoder = build_autoencoder().eval().requires_grad_(False)
    seen = torch.rand(3, 3, 64, 64) * 2 - 1
    still = disturb(autoencoder, seen, 0.0, torch.Generator())
    assert torch.allclose(still, reconstruct(autoencoder, seen), atol=1e-6)
