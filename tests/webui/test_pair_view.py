"""Notes on the two files, and the preview of the plan."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from klora.errors import LoraFileError, PairError
from klora.hosts.webui import pair_view
from klora.settings import Settings

from .conftest import FakeHost

DEFAULTS = [getattr(Settings(enabled=True), one.name) for one in Settings.declarations()]
PAIR = "a fox <lora:fox:1> <lora:Ink Wash:0.8>"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """An engine that notes what it is asked, and files whose trigger words are hostile."""
    asked: list[tuple[Any, ...]] = []
    planning, heat_map, files = (
        ModuleType(f"klora.{name}") for name in ("planning", "pictures.heat_map", "files")
    )

    def plan_files(*question: Any) -> str:
        asked.append(question)
        return "the plan"

    def draw_plan(plan: Any) -> Any:
        assert plan == "the plan"
        return SimpleNamespace(savefig=lambda file, format, dpi: file.write(b"picture"))

    def read_lora(path: str) -> Any:
        if "Oak" in path:
            raise LoraFileError("Oak.safetensors: layer <x> is broken.")
        return SimpleNamespace(
            base_model="SDXL" if "ink" in path else "SD1",
            dialect="kohya",
            ranks=(4, 8),
            trigger_words=lambda count: ("sks fox", '"&', "<lora:evil:1>")[:count],
        )

    def check_base_models(content: Any, style: Any) -> None:
        if content.base_model != style.base_model:
            raise PairError(f"{content.base_model} & {style.base_model} differ.")

    planning.plan_files = plan_files  # type: ignore[attr-defined]
    planning.check_base_models = check_base_models  # type: ignore[attr-defined]
    heat_map.draw_plan = draw_plan  # type: ignore[attr-defined]
    files.read_lora = read_lora  # type: ignore[attr-defined]
    for module in (planning, heat_map, files):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


def test_the_preview_plans_the_pair_of_the_prompt(host: FakeHost, engine: list[tuple[Any, ...]]) -> None:
    text = pair_view.plan_picture(PAIR, "20", *DEFAULTS)
    assert "data:image/png;base64,cGljdHVyZQ==" in text
    assert engine == [("/loras/fox.safetensors", "/loras/sub/ink.safetensors", Settings(enabled=True), 20)]


@pytest.mark.parametrize(
    ("prompt", "steps", "sentence"),
    [
        ("<lora:fox:1>", "20", "found 1 (fox)"),
        ("<lora:fox:1><lora:nobody:1>", "20", "There is no LoRA &#x27;nobody&#x27;"),
        ("<lora:a&b:1>", "20", "found 1 (a&amp;b)"),
        (PAIR, "many", "write a whole number"),
    ],
)
def test_an_obstacle_is_said_in_plain_text(
    host: FakeHost, engine: list[tuple[Any, ...]], prompt: str, steps: str, sentence: str
) -> None:
    text = pair_view.plan_picture(prompt, steps, *DEFAULTS)
    assert sentence in text
    assert "<img" not in text
    assert engine == []


def test_a_bad_setting_is_said_too(host: FakeHost, engine: list[tuple[Any, ...]]) -> None:
    arguments = list(DEFAULTS)
    arguments[[one.name for one in Settings.declarations()].index("beta")] = "much"
    assert "beta is &#x27;much&#x27;" in pair_view.plan_picture(PAIR, "20", *arguments)


def test_a_note_names_base_model_rank_and_trigger_words(
    host: FakeHost, engine: list[tuple[Any, ...]]
) -> None:
    text = pair_view.notes("fox", "")
    assert "for SD1, rank 4 to 8, kohya" in text
    assert ">sks fox</button>" in text
    assert ">&quot;&amp;</button>" in text
    assert "Style" not in text


def test_no_trigger_word_can_load_a_lora(host: FakeHost, engine: list[tuple[Any, ...]]) -> None:
    assert "lora:evil" not in pair_view.notes("fox", "")


def test_different_base_models_are_said_before_a_picture_is_asked_for(
    host: FakeHost, engine: list[tuple[Any, ...]]
) -> None:
    assert "SD1 &amp; SDXL differ." in pair_view.notes("fox", "ink")
    assert "differ" not in pair_view.notes("fox", "fox")


def test_a_broken_or_missing_file_is_said_and_the_other_one_still_shown(
    host: FakeHost, engine: list[tuple[Any, ...]]
) -> None:
    text = pair_view.notes("Oak", "<i>gone</i>")
    assert "layer &lt;x&gt; is broken" in text
    assert "<i>" not in text
    assert "for SDXL, rank" in pair_view.notes("Oak", "ink")


def test_without_a_pair_there_is_nothing_to_say(host: FakeHost) -> None:
    assert pair_view.notes("", "") == ""
