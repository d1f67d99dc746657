"""Further individuals: who they are, which styles they meet, and that they stay apart from the lab."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
for module in ("diffusers", "transformers", "PIL", "scipy"):
    pytest.importorskip(module, reason="install the extra 'lab' to test the lab")

from klora.errors import KloraError  # noqa: E402
from klora.lab import checkpoint, judges, truth  # noqa: E402
from klora.lab.__main__ import main  # noqa: E402
from klora.lab.fronts.study import UNITS  # noqa: E402
from klora.lab.pairs import all_pairs  # noqa: E402
from klora.lab.recipes import (  # noqa: E402
    CONTENT_BUILDS,
    FURTHER,
    FURTHER_HALF,
    MET,
    RECIPES,
    STYLE,
    STYLE_VALIDATION,
    recipe_of,
)
from klora.lab.training import further, gates, loras, stages  # noqa: E402
from klora.lab.training.gates import Gate  # noqa: E402
from klora.lab.world.individuals import ALL_INDIVIDUALS, BY_NAME, INDIVIDUALS, THINGS  # noqa: E402
from klora.lab.world.individuals import FURTHER as INDIVIDUALS_AGAIN  # noqa: E402
from klora.lab.world.prompts import trigger_prompts  # noqa: E402
from tests.lab.conftest import random_lora  # noqa: E402

OF_TEST = {one.kind for one in INDIVIDUALS["test"]}


def test_every_further_individual_is_a_subject_of_its_own() -> None:
    """No kind twice; a kind of the test half with other things; none that methods were chosen on."""
    kinds = [one.kind for one in INDIVIDUALS_AGAIN]
    assert len(set(kinds)) == len(kinds) == 28
    assert set(kinds) == OF_TEST | set(STYLE_VALIDATION)
    assert set(kinds) <= set(MET)  # the base model draws these
    before = {one.kind: one.things for one in ALL_INDIVIDUALS}
    for one in INDIVIDUALS_AGAIN:
        assert one.things <= set(THINGS)
        assert one.things.isdisjoint(before.get(one.kind, ()))
        assert BY_NAME[one.name] is one


def test_their_triggers_are_words_that_the_text_encoder_has_for_others() -> None:
    of_kind = {one.trigger: one.kind for one in ALL_INDIVIDUALS if one.trigger}
    called = [one.trigger for one in INDIVIDUALS_AGAIN if one.trigger]
    assert len(called) == len(set(called)) == len(INDIVIDUALS_AGAIN) / 2
    said = {word for prompt in trigger_prompts() for word in prompt.replace(",", "").split()}
    assert set(called) <= said
    assert all(of_kind[one.trigger] != one.kind for one in INDIVIDUALS_AGAIN if one.trigger)


def test_their_loras_have_the_forms_of_the_others_and_names_of_their_own() -> None:
    assert [one.build for one in FURTHER.values()] == [*CONTENT_BUILDS, *CONTENT_BUILDS[:12]]
    assert not set(FURTHER) & set(RECIPES)
    for name, recipe in {**RECIPES, **FURTHER}.items():
        assert recipe_of(name) is recipe


def _empty_files(folder: Path) -> Path:
    for name in {**RECIPES, **FURTHER}:
        (folder / f"{name}.safetensors").touch()
    return folder


def test_they_meet_the_styles_of_the_test_half(tmp_path: Path) -> None:
    pairs = all_pairs("individuals", FURTHER_HALF, _empty_files(tmp_path))
    styles = [one.subject for one in RECIPES.values() if (one.kind, one.half) == (STYLE, "test")]
    assert [(pair.content.subject, pair.style.subject) for pair in pairs] == [
        (one.name, style) for one in INDIVIDUALS_AGAIN for style in styles
    ]
    once = all_pairs("individuals", FURTHER_HALF, tmp_path, spread=1)
    assert [pair.style.subject for pair in once[:4]] == [*styles, styles[0]]


def test_the_halves_are_as_they_were(tmp_path: Path) -> None:
    for half, of_half in INDIVIDUALS.items():
        pairs = all_pairs("individuals", half, _empty_files(tmp_path))
        assert {pair.content.subject for pair in pairs} == {one.name for one in of_half}


def test_they_can_be_reported_together_with_the_test_half(tmp_path: Path) -> None:
    apart = [all_pairs("individuals", half, _empty_files(tmp_path)) for half in ("test", FURTHER_HALF)]
    assert all_pairs("individuals", "test+further", tmp_path) == [*apart[0], *apart[1]]
    named = all_pairs("individuals", "test+further", tmp_path, subjects=["panda-crown", "panda-womans-hat"])
    assert [pair.content.half for pair in named] == ["test"] * 3 + [FURTHER_HALF] * 3
    of_kind: dict[str, set[str]] = {}
    for pair in [*apart[0], *apart[1]]:
        of_kind.setdefault(UNITS["kind"](pair), set()).add(UNITS["subject"](pair))
    assert sorted(map(len, of_kind.values())) == [1] * 12 + [2] * 16
    assert of_kind["panda"] == {"panda-crown", "panda-womans-hat"}


def test_what_they_lack_is_said(tmp_path: Path) -> None:
    for half in (FURTHER_HALF, "test+further"):
        with pytest.raises(KloraError, match="has no strangers"):
            all_pairs("strangers", half, tmp_path)
    with pytest.raises(KloraError, match="train --further"):
        all_pairs("individuals", FURTHER_HALF, tmp_path)


def test_they_are_trained_beside_a_copy_of_the_labs_files(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With random LoRAs in place of trained ones; the lab's own folder stays as it is."""
    made: list[str] = []

    def train(_model: object, recipe: object, _cache: Path, folder: Path) -> Path:
        made.append(recipe.name)  # type: ignore[attr-defined]
        return random_lora(recipe, checkpoint.model_of(weights).denoiser, folder)  # type: ignore[arg-type]

    first = dict(list(FURTHER.items())[:2])
    grey = torch.full((128, 128, 3), 90, dtype=torch.uint8).numpy()
    monkeypatch.setattr(further, "FURTHER", first)
    monkeypatch.setattr(loras, "train", train)
    monkeypatch.setattr(gates, "lora_gates", lambda _m, _j, recipe, _path: [Gate(recipe.name, 1, 0.9)])
    monkeypatch.setattr(truth, "true_picture", lambda _cache, _recipe, _style: grey)
    monkeypatch.setattr(further.icons, "fetch", lambda _cache: None)
    before = {path: path.stat().st_mtime_ns for path in weights.rglob("*")}
    job = stages.Job(tmp_path / "cache", tmp_path / "out")
    further.run(job, weights)
    assert made == list(first)
    assert {path: path.stat().st_mtime_ns for path in weights.rglob("*")} == before
    for name in (f"{checkpoint.NAME}.safetensors", f"{checkpoint.NAME}.yaml", judges.NAME):
        assert (job.out / name).read_bytes() == (weights / name).read_bytes()
    assert [one["name"] for one in json.loads((job.out / "gates.json").read_text())] == list(first)
    drawn = truth.drawings(job.out / truth.NAME)
    styles = [one.subject for one in RECIPES.values() if (one.kind, one.half) == (STYLE, "test")]
    assert all((name, style) in drawn for name in first for style in styles)
    assert ("content-rabbit-face-sunglasses", styles[0]) in drawn
    wanted = [BY_NAME[one.subject].name for one in first.values()]
    pairs = all_pairs("individuals", FURTHER_HALF, job.loras, subjects=wanted)
    assert all(file.stat().st_size for pair in pairs for file in pair.files)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [([], "--out of its own"), (["--stage", "loras"], "leave out --stage")],
)
def test_they_never_land_among_the_labs_files(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path)] if arguments else []
    assert main(["train", "--further", *out, *arguments]) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
