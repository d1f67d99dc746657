"""The comparison: how a job becomes one, which pictures it makes, and that it can be interrupted."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from klora.hosts.webui import compare
from klora.presets import AS_PUBLISHED
from klora.settings import DEFAULT_PRESET, Settings

from .conftest import FakeHost

Image = pytest.importorskip("PIL.Image", reason="the grid is a picture of Pillow: install the extra 'lab'")
SIZE = 32


class Runner:
    """The host's runner of scripts."""

    def __init__(self) -> None:
        self.selectable_scripts = [
            SimpleNamespace(title=lambda name=name: name) for name in ("X", compare.TITLE)
        ]
        self.alwayson_scripts = [
            SimpleNamespace(title=lambda: "K-LoRA", args_from=1, args_to=1 + len(Settings.offered()))
        ]
        self.ran: list[tuple[Any, ...]] = []

    def run(self, p: Any, *arguments: Any) -> str:
        self.ran.append((p, *arguments))
        return "done"


def test_the_host_runs_the_comparison_for_this_job_and_no_other() -> None:
    runner = Runner()
    p = SimpleNamespace(scripts=runner)
    compare.redirect(p, compare.BALANCE)
    assert runner.run(p, 0, "a") == "done"
    assert runner.run(p, 0, "b") == "done"
    assert [(one[1], one[2]) for one in runner.ran] == [(2, "a"), (0, "b")]
    assert p.klora_compare == compare.BALANCE


def test_a_job_that_failed_before_it_began_does_not_turn_the_next_into_a_comparison() -> None:
    runner = Runner()
    compare.redirect(SimpleNamespace(scripts=runner), compare.WAYS)
    later = SimpleNamespace()
    runner.run(later, 0)
    runner.run(later, 1)
    assert [one[1] for one in runner.ran] == [0, 1]


@pytest.mark.parametrize("kind", ["", None, "other", 3])
def test_without_the_mark_nothing_changes(kind: object) -> None:
    runner = Runner()
    p = SimpleNamespace(scripts=runner)
    compare.redirect(p, kind)
    runner.run(p, 0)
    assert runner.ran == [(p, 0)]
    compare.redirect(SimpleNamespace(), compare.WAYS)  # an API call without a runner


class Processing:
    """The host's processing: notes the settings of each picture, which is of one colour."""

    def __init__(self, state: Any, interrupt_after: int | None = None) -> None:
        self.state, self.interrupt_after = state, interrupt_after
        self.jobs: list[Any] = []

    def fix_seed(self, p: Any) -> None:
        p.seed = 7 if p.seed == -1 else p.seed

    def process_images(self, p: Any) -> Any:
        self.jobs.append(p)
        self.state.interrupted = len(self.jobs) == self.interrupt_after
        text = f"seed {p.seed} {p.klora_overrides['mode']}"
        p.klora_job = SimpleNamespace(plans=[])
        return SimpleNamespace(
            images=[Image.new("RGB", (SIZE, SIZE), (len(self.jobs), 0, 0))],
            infotexts=[text],
            seed=p.seed,
            all_prompts=[p.prompt],
            all_negative_prompts=[""],
            all_seeds=[p.seed],
            all_subseeds=[1],
        )

    def Processed(self, _p: Any, images: list[Any], seed: int, info: str) -> Any:  # noqa: N802 - the host's name
        return SimpleNamespace(images=images, seed=seed, infotexts=[info])


def fake_images(saved: list[dict[str, Any]]) -> ModuleType:
    images = ModuleType("modules.images")

    def image_grid(pictures: list[Any], rows: int) -> Any:
        columns = len(pictures) // rows
        grid = Image.new("RGB", (columns * SIZE, rows * SIZE))
        for at, picture in enumerate(pictures):
            grid.paste(picture, (at % columns * SIZE, at // columns * SIZE))
        return grid

    def annotated(grid: Any, width: int, height: int, columns: Any, rows: Any) -> Any:
        grid.labels = [one[0].text for one in columns], [one[0].text for one in rows]
        return grid

    def save_image(picture: Any, folder: str, name: str, **rest: Any) -> None:
        saved.append({"name": name, **rest})

    images.image_grid = image_grid  # type: ignore[attr-defined]
    images.draw_grid_annotations = annotated  # type: ignore[attr-defined]
    images.GridAnnotation = lambda text: SimpleNamespace(text=text)  # type: ignore[attr-defined]
    images.save_image = save_image  # type: ignore[attr-defined]
    return images


@pytest.fixture
def saved(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    modules: Any = sys.modules["modules"]
    shared: Any = sys.modules["modules.shared"]
    shared.state = SimpleNamespace(interrupted=False, job_count=0)
    shared.opts = SimpleNamespace(grid_save=True, grid_format="png")
    for name, module in (("images", fake_images(found)), ("processing", Processing(shared.state))):
        monkeypatch.setitem(sys.modules, f"modules.{name}", module)
        monkeypatch.setattr(modules, name, module, raising=False)
    return found


def job(tmp_path: Path, settings: Settings | None = None, **extra: Any) -> Any:
    values = (settings or Settings()).values
    told = {
        "prompt": "<lora:fox:1><lora:ink:1>",
        "n_iter": 1,
        "batch_size": 1,
        "seed": -1,
        "steps": 4,
        **extra,
    }
    return SimpleNamespace(
        scripts=Runner(),
        script_args=(0, *(values[one.name] for one in Settings.offered()), ""),
        styles=[],
        extra_generation_params={},
        outpath_grids=str(tmp_path),
        **told,
    )


def made() -> list[Any]:
    processing: Any = sys.modules["modules.processing"]
    jobs: list[Any] = processing.jobs
    return jobs


def test_five_ways_on_one_seed_and_the_grid_first(saved: list[dict[str, Any]], tmp_path: Path) -> None:
    p = job(tmp_path, Settings(balance=0.3, content="fox"))
    result = compare.run(p, compare.WAYS, "klora_job")
    told = [one.klora_overrides for one in made()]
    assert [one["mode"] for one in told] == ["content only", "style only", "added", "K-LoRA", "K-LoRA"]
    assert {one.seed for one in made()} == {7}
    assert all(one["enabled"] and one["content"] == "fox" for one in told)
    assert [one["balance"] for one in told] == [0.3, 0.3, 0.3, 0, 0.3]
    assert told[3]["preset"] == "As published: S"
    columns, rows = result.images[0].labels
    assert columns == ["content only", "style only", "added", "K-LoRA as published", "this setting"]
    assert rows == ["seed 7"]
    assert len(result.images) == len(result.infotexts) == len(result.all_seeds) == 6
    assert result.infotexts[0] == result.infotexts[-1]
    assert result.index_of_first_image == 1
    assert saved == [
        {
            "name": "klora_compare",
            "info": "seed 7 K-LoRA",
            "extension": "png",
            "prompt": p.prompt,
            "seed": 7,
            "grid": True,
            "p": p,
        }
    ]


def test_a_row_over_balance_for_each_picture_of_the_batches(
    saved: list[dict[str, Any]], tmp_path: Path
) -> None:
    result = compare.run(job(tmp_path, n_iter=2, seed=40), compare.BALANCE, "klora_job")
    assert [one.klora_overrides["balance"] for one in made()] == [-0.8, -0.4, 0, 0.4, 0.8] * 2
    assert [one.seed for one in made()] == [40] * 5 + [41] * 5
    assert all(one.n_iter == one.batch_size == 1 for one in made())
    assert result.images[0].labels[1] == ["seed 40", "seed 41"]


def test_a_setting_with_a_name_is_labelled_by_it(host: FakeHost) -> None:
    assert compare.columns(compare.WAYS, Settings())[-1].label == f"this setting: {DEFAULT_PRESET}"


def test_the_pair_of_a_tag_is_compared(saved: list[dict[str, Any]], tmp_path: Path) -> None:
    compare.run(job(tmp_path, prompt="<klora:ink:fox:balance=0.2>"), compare.WAYS, "klora_job")
    assert {(one.klora_overrides["content"], one.klora_overrides["style"]) for one in made()} == {
        ("ink", "fox")
    }


def test_the_preset_of_a_tag_is_compared(saved: list[dict[str, Any]], tmp_path: Path) -> None:
    prompt = f"<klora:ink:fox:preset={AS_PUBLISHED.name},balance=0.1>"
    result = compare.run(job(tmp_path, prompt=prompt), compare.WAYS, "klora_job")
    expected = {**AS_PUBLISHED.complete(), "balance": 0.1}
    told = made()[-1].klora_overrides
    assert {name: told[name] for name in expected} == expected
    assert result.images[0].labels[0][-1] == "this setting"


def test_after_an_interrupt_the_rest_is_grey_and_not_made(
    saved: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processing: Any = sys.modules["modules.processing"]
    processing.interrupt_after = 2
    result = compare.run(job(tmp_path), compare.WAYS, "klora_job")
    assert len(made()) == 2
    assert len(result.images) == 3
    grid = result.images[0]
    assert [grid.getpixel((column * SIZE + 5, 5))[0] for column in range(5)] == [1, 2, 0x88, 0x88, 0x88]


def test_interrupted_before_the_first_picture(saved: list[dict[str, Any]], tmp_path: Path) -> None:
    shared: Any = sys.modules["modules.shared"]
    shared.state.interrupted = True
    assert compare.run(job(tmp_path), compare.WAYS, "klora_job").images == []
    assert saved == []
