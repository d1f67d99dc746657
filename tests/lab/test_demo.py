"""``python -m klora demo``, with an untrained lab and, where its weights are there, with the real one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from klora.__main__ import main, parser
from klora.commands.plan import rule_settings
from klora.lab import demo, pairs
from klora.settings import Settings
from tests.lab.conftest import SUBJECTS
from tests.published import published

EMBEDDED = bool(demo.names("content")) and bool(demo.names("style"))


def _arguments(weights: Path, out: Path, *more: str) -> list[str]:
    return ["demo", "--weights", str(weights), "--out", str(out), "--steps", "2", "--seeds", "2", *more]


def test_pictures_plan_and_scores(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    style = pairs.default_styles()[1]
    more = ("--content", SUBJECTS[1], "--style", style, "--clock", "noise", "--top-k", "64")
    assert main(_arguments(weights, tmp_path, *more)) == 0
    said = capsys.readouterr().out
    assert f"{SUBJECTS[1]} + {style}" in said
    for name in ("content only", "style only", "added 1+1", "K-LoRA S ", "K-LoRA S*"):
        assert name in said
    assert said.count(" of 2 (") == 10
    from PIL import Image

    for name in ("demo.png", "plan.png"):
        assert str(tmp_path / name) in said
    with Image.open(tmp_path / "demo.png") as sheet:
        assert sheet.width > 6 * 4 * 64
        assert sheet.height > 2 * 4 * 64


def test_the_plan_is_that_of_the_schedule_asked_for(weights: Path) -> None:
    pair = demo.choose_pair(None, None, weights)
    made = demo.run(pair, published(schedule="S*", alpha=3.0), [5], steps=3, weights=weights)
    assert made.plan.steps == 3
    assert made.pair.subject == SUBJECTS[0]
    star = next(one for one in made.shown if one.method.name == "K-LoRA S*")
    assert star.method.settings is not None
    assert star.method.settings["alpha"] == 3.0
    assert {one.pictures.shape for one in made.shown} == {(1, 3, 64, 64)}


def test_a_prompt_of_ones_own(weights: Path) -> None:
    pair = demo.choose_pair(None, None, weights)
    usual, other = (
        demo.run(pair, Settings(), [0], prompt=prompt, steps=2, weights=weights) for prompt in (None, "a fox")
    )
    assert (usual.prompt, other.prompt) == (pair.prompt, "a fox")
    assert not usual.shown[0].pictures.equal(other.shown[0].pictures)


def test_every_setting_of_the_rule_is_an_option() -> None:
    chosen = parser().parse_args(["demo"])
    assert {one.name: getattr(chosen, one.name) for one in rule_settings()} == {
        one.name: one.default for one in rule_settings()
    }


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--content", "dragonfruit"), "the lab has no content LoRA dragonfruit"),
        (("--style", "chalk"), "the lab has no style LoRA chalk"),
        (("--seeds", "0"), "seeds is 0"),
        (("--gamma", "big"), "gamma"),
    ],
)
def test_bad_input_is_one_sentence(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    assert main(_arguments(weights, tmp_path, *more)) == 2
    assert message in capsys.readouterr().err


def test_missing_weights_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_arguments(tmp_path, tmp_path)) == 2
    assert "python -m klora.lab train" in capsys.readouterr().err


def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = importlib.util.find_spec

    def without_diffusers(name: str, package: str | None = None) -> Any:
        return None if name == "diffusers" else known(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_diffusers)
    assert main(["demo"]) == 2
    assert 'diffusers, not installed yet; run: python -m pip install -e ".[lab]"' in capsys.readouterr().err


def test_the_loras_are_listed(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--weights", str(weights), "--list"]) == 0
    content, style = capsys.readouterr().out.splitlines()
    assert content == "content: " + ", ".join(SUBJECTS)
    assert all(name in style for name in pairs.default_styles())


@pytest.mark.skipif(not EMBEDDED, reason="the lab's LoRAs are not in klora/lab/weights/loras")
def test_the_embedded_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path), "--seeds", "2"]) == 0
    content = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("content only"))
    assert content.split()[2:5] == ["2", "of", "2"]  # the subject, as the gates ask of every content LoRA


def test_plan_without_files_takes_the_pair_that_ships(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--steps", "4"]) == 0
    assert "content disney" in capsys.readouterr().out
    assert main(["plan", "one.safetensors"]) == 2
    assert "one file was named" in capsys.readouterr().err
