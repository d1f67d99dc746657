"""Fronts: names of methods, and the statistics by slow formulas."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
for module in ("diffusers", "transformers", "PIL", "scipy", "matplotlib"):
    pytest.importorskip(module, reason="install the extra 'lab' to test the lab")

from PIL import Image  # noqa: E402

from klora.errors import KloraError  # noqa: E402
from klora.lab.__main__ import main as lab  # noqa: E402
from klora.lab.__main__ import parser  # noqa: E402
from klora.lab.fronts import commands, methods, report, statistics, worlds  # noqa: E402
from klora.lab.fronts.statistics import Front  # noqa: E402
from klora.lab.scoring import MEASURES  # noqa: E402
from klora.presets import BALANCED  # noqa: E402
from klora.settings import Settings, rule_settings  # noqa: E402


def test_a_name_says_rule_and_settings() -> None:
    found = methods.method("K-LoRA keep=0.7 guidance=content style_weight=1.3")
    assert found.settings.rule == "K-LoRA"
    assert (found.settings.keep, found.settings.guidance, found.settings.style_weight) == (
        0.7,
        "content",
        1.3,
    )
    assert found.at(0.5).balance == 0.5
    assert found.settings.schedule == "S"


@pytest.mark.parametrize(
    "name",
    [
        "nothing",
        "K-LoRA keep",
        "K-LoRA balance=0.5",
        "K-LoRA keep=2",
        "smooth x=1",
        "weights content_e=0",
        "weights content_e=x",
    ],
)
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(KloraError):
        methods.method(name)


def test_every_method_of_the_study_is_one() -> None:
    names = methods.study()
    assert len(names) == len(set(names))
    assert all(methods.method(name).name == name for name in names)
    assert len(methods.BALANCES) >= 7
    assert 0.0 in methods.BALANCES


_points = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8)


@settings(deadline=None)
@given(_points)
def test_the_area_is_that_of_all_corners_together(points: list[tuple[float, float]]) -> None:
    style, identity = (np.array(side) for side in zip(*points, strict=True))
    grid = (np.arange(400) + 0.5) / 400
    covered = ((grid[:, None, None] < style) & (grid[None, :, None] < identity)).any(-1)
    assert statistics.area(style, identity) == pytest.approx(covered.mean(), abs=0.01)


def _front(name: str, values: np.ndarray) -> Front:
    """A front of identity and style [units, balances, 2]; the other measures are 0."""
    others = np.zeros((*values.shape[:2], len(MEASURES) - 2))
    return Front(name, (-0.5, 0.0, 0.5), MEASURES, np.concatenate([values, others], axis=2))


def test_the_best_balance_is_that_of_the_means() -> None:
    values = np.array([[[1.0, 0.0], [0.6, 0.8], [0.1, 1.0]], [[0.9, 0.1], [0.8, 0.6], [0.3, 1.0]]])
    front = _front("a", values)
    assert statistics.best_balance(front) == 0.0
    reached = statistics.figure(front, statistics.measure_at(front, "harmonic", 0.0))
    assert reached.value == pytest.approx(0.7)
    assert reached.low <= 0.7 <= reached.high


def test_a_paired_difference_knows_what_single_intervals_do_not() -> None:
    chance = np.random.default_rng(0)
    subjects = chance.uniform(0.2, 0.8, (16, 1, 1))
    lower = _front("a", np.broadcast_to(subjects, (16, 3, 2)).copy())
    higher = _front("b", np.clip(lower.values[..., :2] + 0.05, 0, 1))
    at = [statistics.measure_at(front, "identity", 0.0) for front in (higher, lower)]
    apart = statistics.paired(higher, at[0], lower, at[1])
    assert apart.value == pytest.approx(0.05)
    assert apart.excludes_zero
    alone = [statistics.figure(front, one) for front, one in zip((higher, lower), at, strict=True)]
    assert alone[0].low < alone[1].high


def test_what_must_be_beaten_is_adding_at_its_best() -> None:
    weak, strong = np.full((2, 3, 2), 0.3), np.full((2, 3, 2), 0.6)
    fronts = [
        _front("weights", weak),
        _front("weights style_weight=1.3", strong),
        _front("weights guidance=content", np.full((2, 3, 2), 0.9)),
        _front("K-LoRA", weak),
    ]
    balances = report.chosen_balances(fronts)
    assert report.best_added(fronts, balances) == "weights style_weight=1.3"


def test_what_is_published_stands_beside_itself_at_balance_0() -> None:
    values = np.array([[[1.0, 0.0], [0.2, 0.2], [0.9, 0.9]]] * 2)
    fronts = report.with_originals([_front("K-LoRA", values)])
    balances = report.with_zeros(report.chosen_balances(fronts[:1]))
    made = {row.method: row for row in report.rows(fronts, balances, ["K-LoRA as published"])}
    assert made["K-LoRA"].figures["harmonic"].value == pytest.approx(0.9)
    assert made["K-LoRA as published"].figures["harmonic"].value == pytest.approx(0.2)
    apart = made["K-LoRA"].against["K-LoRA as published"]
    assert apart["harmonic"].value == pytest.approx(0.7)
    assert apart["area"].value == 0


def test_a_report_is_written_with_its_picture(tmp_path: Path) -> None:
    chance = np.random.default_rng(2)
    measures = tuple(MEASURES)
    fronts = [
        Front(name, (-0.5, 0.0, 0.5), measures, chance.random((4, 3, len(measures))))
        for name in ("weights", "K-LoRA", "smooth")
    ]
    balances = report.chosen_balances(fronts)
    references = ["weights", "K-LoRA"]
    made = report.rows(fronts, balances, references)
    written = report.write(made, fronts, references, "A study", tmp_path / "study-4.5")
    assert [path.name for path in written] == [f"study-4.5{end}" for end in (".md", ".json", ".png")]
    text = written[0].read_text()
    assert "Difference from: weights" in text
    assert "| smooth |" in text
    assert written[2].stat().st_size > 5000


def test_both_worlds_are_drawn_from_their_reports(tmp_path: Path) -> None:
    folder, path = tmp_path / "out", tmp_path / "fronts.png"
    asked = ["benchmark", "--out", str(folder), "--picture", str(path)]
    folder.mkdir()
    for world in ("individuals", "strangers"):
        assert lab(asked) != 0
        told = {
            "methods": [{"name": "weights", "balance": 0.0}],
            "fronts": {"weights": {"balances": [0.0], "style": [0.5], "identity": [0.4]}},
        }
        (folder / f"{world}-development-4.json").write_text(json.dumps(told))
    assert lab(asked) == 0
    with Image.open(path) as drawn:
        assert drawn.width > drawn.height > 300


def _reports(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    for world in ("individuals", "strangers"):
        (folder / f"{world}-development-4.json").write_text(text)


POINTS: dict[str, object] = {"balances": [0.0], "style": [0.5], "identity": [0.4]}
CHOSEN = [{"name": "weights", "balance": 0.0}]
DAMAGED = (
    "",
    "{",
    "[]",
    "{}",
    "[" * 100_000,
    json.dumps({"methods": CHOSEN, "fronts": {"weights": {**POINTS, "style": []}}}),
    json.dumps({"methods": CHOSEN, "fronts": {"weights": {**POINTS, "identity": [None]}}}),
    json.dumps({"methods": CHOSEN, "fronts": {"weights": {**POINTS, "balances": [0.5]}}}),
    json.dumps({"methods": [], "fronts": {"weights": POINTS}}),
    json.dumps({"methods": [1], "fronts": {}}),
)


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_report_is_not_drawn(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, path = tmp_path / "out", tmp_path / "fronts.png"
    _reports(folder, text)
    assert lab(["benchmark", "--out", str(folder), "--picture", str(path)]) == 2
    told = f"individuals-development-4.json in {folder} is damaged; run the benchmark of this world again."
    assert capsys.readouterr() == ("", f"klora: {told}\n")
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nodir/x.png", "{} cannot be written: there is no folder {}; make it or name another."),
        ("x.foo", "{} has no ending of a picture; write one of: .png, .jpg, .jpeg, .pdf, .svg, .webp."),
        ("x", "{} has no ending of a picture; write one of: .png, .jpg, .jpeg, .pdf, .svg, .webp."),
        ("out.png", "{} is a folder; name a file in it to write to."),
    ],
)
def test_where_no_picture_can_be_is_said_before_a_report_is_read(
    name: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.png").mkdir()
    path = tmp_path / name
    assert lab(["benchmark", "--out", str(tmp_path / "none"), "--picture", str(path)]) == 2
    assert capsys.readouterr() == ("", f"klora: {told.format(path, path.parent)}\n")


@pytest.mark.parametrize("ending", worlds.ENDINGS)
def test_every_ending_is_drawn(ending: str, tmp_path: Path) -> None:
    _reports(tmp_path / "out", json.dumps({"methods": CHOSEN, "fronts": {"weights": POINTS}}))
    path = tmp_path / f"fronts{ending}"
    assert lab(["benchmark", "--out", str(tmp_path / "out"), "--picture", str(path)]) == 0
    assert path.stat().st_size > 1000


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--spread", "0"), "--spread is 0; write a number of at least 1."),
        (("--spread", "-1"), "--spread is -1; write a number of at least 1."),
        (("--spread", "-1", "--predict"), "--spread is -1; write a number of at least 1."),
        (("--seeds", "0"), "--seeds is 0; write a number of at least 1."),
        (("--guidance-scale", "nan"), "--guidance-scale is nan; write a number from 0 to 100."),
        (("--guidance-scale", "-3"), "--guidance-scale is -3; write a number from 0 to 100."),
        (("--balances", "0", "7"), "balance is 7.0; write a number from -1 to 1."),
    ],
)
def test_numbers_are_checked_before_pictures_are_made(
    more: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert lab(["benchmark", "--methods", "weights", "--out", str(out), *more]) == 2
    assert capsys.readouterr() == ("", f"klora: {told}\n")
    assert not out.exists()


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("nobody",), "the development half has no individual nobody; there are: "),
        (("bear-top-hat",), "--leave-out leaves no subject; leave out fewer."),
    ],
)
def test_who_is_left_out_is_checked(
    names: tuple[str, ...], told: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["benchmark", "--methods", "weights", "--weights", str(weights), "--out", str(tmp_path / "out")]
    pair = ("--subjects", "bear-top-hat", "--styles", "engraving")
    assert lab([*asked, *pair, "--leave-out", *names]) == 2
    assert capsys.readouterr().err.startswith(f"klora: {told}")


def test_all_but_those_that_are_left_out(weights: Path, tmp_path: Path) -> None:
    asked = ["benchmark", "--weights", str(weights), "--out", str(tmp_path), "--methods", "weights"]
    subjects = ("--subjects", "rabbit-face-sunglasses", "panda-crown", "--leave-out", "panda-crown")
    chosen = parser().parse_args([*asked, *subjects])
    study = commands._study(chosen, "individuals", "test")
    assert {pair.content.subject for pair in study.pairs} == {"rabbit-face-sunglasses"}


def test_a_file_as_the_folder_is_refused_before_pictures_are_made(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "text.txt"
    out.write_text("")
    pair = ("--half", "development", "--subjects", "bear-top-hat", "--styles", "engraving")
    asked = ["benchmark", "--methods", "weights", "--weights", str(weights), "--out", str(out), *pair]
    assert lab(asked) == 2
    assert capsys.readouterr() == ("", f"klora: {out} cannot be used (it is a file); name a folder.\n")


def test_an_error_of_the_system_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "here")

    monkeypatch.setattr(worlds, "picture", fail)
    assert lab(["benchmark", "--picture", str(tmp_path / "x.png")]) == 2
    assert capsys.readouterr() == ("", "klora: [Errno 2] No such file or directory: 'here'\n")


def test_the_model_is_installed_from_a_folder_that_has_it(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "webui" / "models"
    (models / "Stable-diffusion").mkdir(parents=True)
    asked = ["install", str(tmp_path / "webui"), "--weights"]
    nowhere = tmp_path / "nodir"
    assert lab([*asked, str(nowhere)]) == 2
    told = (
        f"klora: klora-lab.safetensors is not in {nowhere}; name another folder, or train the lab: "
        "python -m klora.lab train\n"
    )
    assert capsys.readouterr() == ("", told)
    assert list(models.rglob("*.*")) == []
    assert lab([*asked, str(weights)]) == 0
    names = {one.name for one in models.rglob("*.*")}
    assert {"klora-lab.safetensors", "klora-lab.yaml", "content-bear-top-hat.safetensors"} <= names


def test_a_damaged_choice_is_said_before_pictures_are_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--half", "test", "--world", "strangers", "--methods", "weights", "--out", str(tmp_path)]
    name = "choice-strangers-4.json"
    for text in ("{", "[]", "{}", '{"balances": 1, "added": null}', '{"balances": {"a": "b"}, "added": 1}'):
        (tmp_path / name).write_text(text)
        assert lab(["benchmark", *asked]) == 2
        told = f"{name} in {tmp_path} is damaged; run the development half of this world again."
        assert capsys.readouterr() == ("", f"klora: {told}\n")


def test_what_is_drawn_as_the_default_is_the_default() -> None:
    name = next(method for method, label in worlds.SHOWN.items() if label.startswith(BALANCED.name))
    drawn = methods.method(name).at(0)
    default = Settings()
    assert {one.name: drawn.values[one.name] for one in rule_settings() if default.shapes(one)} == {
        one.name: default.values[one.name] for one in rule_settings() if default.shapes(one)
    }


@pytest.mark.parametrize(
    ("kept", "balances", "told"),
    [
        (None, ["0"], "nothing is chosen yet; run the development half of this world and guidance first."),
        ({}, ["0"], "the balance of weights is not chosen yet; run the development half first."),
        ({"weights": -0.3}, ["0", "0.3"], "add -0.3 to --balances."),
    ],
)
def test_what_was_not_chosen_is_said_before_pictures_are_made(
    kept: dict[str, float] | None,
    balances: list[str],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if kept is not None:
        choice = json.dumps({"balances": kept, "added": None})
        (tmp_path / "choice-strangers-4.json").write_text(choice)
    asked = ["--half", "test", "--world", "strangers", "--methods", "weights", "--out", str(tmp_path)]
    assert lab(["benchmark", *asked, "--balances", *balances]) == 2
    assert capsys.readouterr().err.strip().endswith(told)
    assert not (tmp_path / "scores").exists()


def test_a_label_needs_balance_0() -> None:
    values = np.ones((2, 1, 2))
    front = Front("K-LoRA", (0.5,), ("identity", "style"), values)
    assert report.with_originals([front]) == [front]
