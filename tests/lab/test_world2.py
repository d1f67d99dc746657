"""World 2's parts that need no training: splits, prompts, styles, recipes, judges' rules, the checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for module in ("diffusers", "transformers", "PIL", "scipy"):
    pytest.importorskip(module, reason="install the extra 'lab' to test the lab")

from klora.lab import checkpoint, loras, model, tokens, world  # noqa: E402
from klora.lab.world2 import judges, recipes, scoring  # noqa: E402
from klora.lab.world2.individuals import ALL_INDIVIDUALS, INDIVIDUALS, THINGS  # noqa: E402
from klora.lab.world2.kinds import ALL_STRANGERS, KINDS, STRANGERS, SUBJECTS  # noqa: E402
from klora.lab.world2.lessons import STYLE_NAMES, UNKNOWN, worn  # noqa: E402
from klora.lab.world2.prompts import base_prompts  # noqa: E402
from klora.lab.world2.styles import (  # noqa: E402
    BASE_STYLES,
    HELD_OUT_STYLES,
    SCALE,
    STYLES,
    STYLES_OF_HALF,
    reduced,
)

HALVES = ("development", "test")


def test_the_base_model_knows_twice_as_many_kinds_and_no_stranger() -> None:
    assert len(KINDS) >= 2 * len(world.BASE_SUBJECTS)
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
def test_a_style_is_a_picture_of_its_own_ground(style: world.Style) -> None:
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
    assert {one.rank for one in made} >= {4, 8, 16, 32}
    assert {one.targets for one in made} == {loras.ATTENTION, loras.WHOLE, recipes.CONVOLUTIONS}
    assert any(one.alpha != one.rank for one in contents)
    assert {one.build.drawings for one in contents} == {1, 2, 3, 4}
    styles = [one for one in made if one.kind == recipes.STYLE]
    assert all(4 <= one.build.drawings <= 8 for one in styles)
    assert {half: sum(one.half == half for one in styles) for half in HALVES} == dict.fromkeys(HALVES, 4)


def test_styles_are_judged_on_kinds_that_no_lesson_shows() -> None:
    shown, tried = set(recipes.STYLE_LESSONS), set(recipes.STYLE_VALIDATION)
    assert not shown & tried
    assert not (shown | tried) & {one.kind for one in ALL_INDIVIDUALS}
    assert shown | tried <= set(KINDS)


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
    before = judges.thing_loss(scores, worn_things)
    scores[1, 3] += 10
    assert judges.thing_loss(scores, worn_things) == before
    plain = torch.nn.functional.binary_cross_entropy_with_logits(scores[:1], worn_things[:1].float())
    assert judges.thing_loss(scores[:1], worn_things[:1]) == pytest.approx(float(plain))


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


def test_the_larger_model_comes_back_from_its_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(2)
    before = model.build_model(model.SECOND).eval()
    for network in (before.autoencoder, before.denoiser, before.text_encoder):
        for weight in network.parameters():
            weight.copy_((weight + 0.05 * torch.randn_like(weight)).half().float())
    path = checkpoint.export(before, tmp_path, shape=model.SECOND)
    after = checkpoint.load(path, model.SECOND)
    for name in ("autoencoder", "denoiser", "text_encoder"):
        old, new = getattr(before, name).state_dict(), getattr(after, name).state_dict()
        assert all(torch.equal(old[key], new[key]) for key in old)
    told = (tmp_path / "klora-lab.yaml").read_text()
    assert "channel_mult: [1, 1, 2]" in told
    assert "ch_mult: [1, 1, 2, 3]" in told
    assert "image_size: 16" in told


def test_base_styles_are_known_to_the_judge() -> None:
    assert {style.name for style in BASE_STYLES} < set(STYLE_NAMES)


def test_a_lora_is_trained_on_only_where_more_steps_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from klora.lab.world2 import loras as training

    fitted: list[int] = []

    def fit(_model: object, recipe: recipes.Recipe, *_lesson: object) -> dict[str, torch.Tensor]:
        fitted.append(recipe.steps)
        return {"lora_unet_x.alpha": torch.ones(1)}

    monkeypatch.setattr(loras, "fit", fit)
    monkeypatch.setattr(training, "lesson", lambda _cache, _recipe: (torch.zeros(1), ["bear"]))
    recipe = recipes.RECIPES["content-bear-top-hat"]
    for factor in (1.0, 1.0, 1.5, 1.0):
        training.train(None, training.longer(recipe, factor), tmp_path, tmp_path)  # type: ignore[arg-type]
    assert fitted == [recipe.steps, round(1.5 * recipe.steps)]
    assert training.steps_of(tmp_path / f"{recipe.name}.safetensors") == round(1.5 * recipe.steps)
    assert training.steps_of(tmp_path / "nothing.safetensors") == 0
