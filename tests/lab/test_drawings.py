"""True drawings from made-up icons: discs whose colour follows from the name; no icon set needed."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for module in ("diffusers", "transformers", "PIL", "scipy"):
    pytest.importorskip(module, reason="install the extra 'lab' to test the lab")

from klora.lab import recipes, truth  # noqa: E402
from klora.lab.model import SIZE  # noqa: E402
from klora.lab.training import lessons, loras  # noqa: E402
from klora.lab.world import drawing, icons, individuals  # noqa: E402
from klora.lab.world.individuals import SHRINK, THINGS, Placed  # noqa: E402
from klora.lab.world.kinds import SUBJECTS  # noqa: E402
from klora.lab.world.styles import STYLES  # noqa: E402
from tests.lab import trials  # noqa: E402


@pytest.fixture(autouse=True)
def discs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every icon is a disc that fills its square."""

    def disc(_cache: Path, _set: str, icon: str, size: int) -> np.ndarray:
        down, across = np.mgrid[:size, :size] + 0.5 - size / 2
        colour = np.random.default_rng(zlib.crc32(icon.encode())).integers(0, 200, 3)
        pixels = np.zeros((size, size, 4), np.uint8)
        pixels[np.hypot(down, across) < size / 2] = (*colour, 255)
        return pixels

    monkeypatch.setattr(icons, "icon_pixels", disc)


def _changed(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of where two pictures differ, as shares of the edge."""
    rows, columns = np.nonzero((one.astype(int) - other).any(axis=-1))
    return (columns.min() / SIZE, rows.min() / SIZE, (columns.max() + 1) / SIZE, (rows.max() + 1) / SIZE)


@pytest.mark.parametrize("placed", [Placed("crown", 0.5, 0.1, 0.4), Placed("bell", 0.2, 0.7, 0.3, 25)])
def test_a_thing_is_where_it_is_written_down(tmp_path: Path, placed: Placed) -> None:
    plain, wearing = (
        individuals.draw(tmp_path, "bear", wears, STYLES["fluent"]) for wears in ((), (placed,))
    )
    left, top, right, bottom = _changed(plain, wearing)
    # The kind's square is shrunk towards the middle of the lower edge.
    middle = (0.5 + SHRINK * (placed.across - 0.5), 1 + SHRINK * (placed.down - 1))
    assert (left + right) / 2 == pytest.approx(middle[0], abs=1.5 / SIZE)
    assert (top + bottom) / 2 == pytest.approx(middle[1], abs=1.5 / SIZE)
    assert right - left == pytest.approx(SHRINK * placed.width, abs=3 / SIZE)  # a disc may turn as it likes


def test_the_kind_stands_on_the_lower_edge(tmp_path: Path) -> None:
    drawn = individuals.draw(tmp_path, "bear", (), STYLES["fluent"])
    left, top, right, bottom = _changed(drawn, np.full_like(drawn, 255))
    assert bottom == 1
    assert (right - left, bottom - top) == pytest.approx((SHRINK, SHRINK), abs=1.5 / SIZE)


def test_a_content_loras_lesson_begins_with_the_style_that_it_is_judged_in(tmp_path: Path) -> None:
    recipe = next(
        one
        for one in recipes.RECIPES.values()
        if one.kind == recipes.INDIVIDUAL and one.build.drawings == 3 and " " in one.trigger
    )
    drawn, prompts = loras.lesson(tmp_path, recipe)
    assert drawn.shape == (3, 3, SIZE, SIZE)
    assert prompts == [f"{recipe.trigger}, {style} style" for style in ("fluent", "ink", "vintage")]
    assert torch.equal(
        drawn[0], torch.from_numpy(truth.true_picture(tmp_path, recipe, "fluent")).permute(2, 0, 1)
    )


def test_a_styles_lesson_shows_few_kinds_in_the_style(tmp_path: Path) -> None:
    recipe = recipes.RECIPES["style-porcelain"]
    drawn, prompts = loras.lesson(tmp_path, recipe)
    assert len(drawn) == len(prompts) == recipe.build.drawings
    assert prompts[0] == "sunflower, porcelain fluent style"


def test_true_drawings_come_back_from_their_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = ("content-bear-top-hat", "content-tulip", "style-riso")
    monkeypatch.setattr(truth, "RECIPES", {name: recipes.RECIPES[name] for name in some})
    path = truth.write(tmp_path, tmp_path / truth.NAME)
    kept = truth.drawings(path)
    assert {name for name, _ in kept} == set(some[:2])
    assert {style for name, style in kept if name == some[1]} == {
        "fluent",
        "porcelain",
        "halftone",
        "cutout",
    }
    expected = truth.true_picture(tmp_path, recipes.RECIPES[some[0]], "poster")
    assert torch.equal(kept[some[0], "poster"], torch.from_numpy(expected).permute(2, 0, 1))


def test_composed_drawings_are_drawn_once_and_labelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lessons, "COMPOSED", 8 * lessons.COMPOSED_PARTS)
    (tmp_path / "drawings").mkdir()
    drawn = lessons.composed_part(tmp_path, 3)
    assert drawn.drawn.shape == (8, 3, SIZE, SIZE)
    assert drawn.things.shape == (8, len(THINGS))
    assert set(drawn.things.sum(1).tolist()) <= {0, 1, 2}
    assert int(drawn.kind.max()) < len(SUBJECTS)
    monkeypatch.setattr(individuals, "draw", None)  # a second look must not draw
    again = lessons.composed_part(tmp_path, 3)
    assert torch.equal(again.drawn, drawn.drawn)
    assert torch.equal(again.style, drawn.style)


def test_a_group_of_drawings_is_not_read_by_the_wrong_list(tmp_path: Path) -> None:
    two = drawing.kinds_in_style(tmp_path, ("bear", "fox"), STYLES["ink"], "few")
    assert two.shape == (2, 3, SIZE, SIZE)
    with pytest.raises(ValueError, match="holds 2 drawings, not 1"):
        drawing.kinds_in_style(tmp_path, ("bear",), STYLES["ink"], "few")


def test_what_could_be_mistaken_is_never_the_individual() -> None:
    for one in individuals.ALL_INDIVIDUALS:
        found = lessons._mistakable(one)
        assert len(found) >= 1 + len(trials.OFFSETS)
        assert sorted(map(repr, found)) == sorted(map(repr, trials.mistakable(one)))
        for kind, wears in found:
            things = frozenset(placed.thing for placed in wears)
            assert (kind, things) != (one.kind, one.things)
