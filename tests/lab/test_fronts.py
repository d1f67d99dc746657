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
from klora.lab.fronts import methods, report, statistics, worlds  # noqa: E402
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
    written = report.write(made, fronts, references, "A study", tmp_path / "study")
    assert [path.suffix for path in written] == [".md", ".json", ".png"]
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
