"""``python -m klora demo``, with an untrained lab and with the one that is shipped."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from klora.__main__ import main, parser
from klora.commands.plan import offered_settings
from klora.lab import demo
from klora.lab.fronts import glance
from klora.lab.pairs import Pair
from klora.lab.recipes import INDIVIDUAL, STRANGER, STYLE, recipe_of
from klora.presets import BALANCED
from klora.settings import Settings
from tests.lab.conftest import SHIPPED


def shipped(kind: str, half: str = "test") -> list[str]:
    """Subjects or styles of the untrained lab."""
    return [one.subject for one in SHIPPED if (one.kind, one.half) == (kind, half)]


SUBJECTS, STYLES = shipped(INDIVIDUAL), shipped(STYLE)
COLUMNS = [
    *(glance.TRUE, glance.CONTENT_ALONE, glance.STYLE_ALONE, "added 1 + 1"),
    *("K-LoRA as published (S)", BALANCED.name),
]


def _arguments(weights: Path, out: Path, *more: str) -> list[str]:
    return ["demo", "--weights", str(weights), "--out", str(out), "--steps", "2", *more]


def test_three_subjects_and_two_styles_with_plan_and_scores(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_arguments(weights, tmp_path)) == 0
    said = capsys.readouterr().out
    pairs = [f"{subject} + {style}" for subject in SUBJECTS[:3] for style in STYLES[:2]]
    assert ", ".join(pairs) in said
    assert all(f"\n{label} " in said for label in COLUMNS)
    assert said.count(" of 6") == 3 * len(COLUMNS)
    from PIL import Image

    for name in ("demo.png", "plan.png"):
        assert str(tmp_path / name) in said
    with Image.open(tmp_path / "demo.png") as sheet:
        assert sheet.width > 6 * 2 * 128
        assert sheet.height > 6 * 2 * 128


def test_subjects_styles_and_seeds_of_ones_own(weights: Path) -> None:
    pairs = demo.choose_pairs(SUBJECTS[3:], STYLES[2:], weights)
    assert [pair.name for pair in pairs] == [f"{SUBJECTS[3]} + {STYLES[2]}"]
    rows = demo.run(pairs, Settings(schedule="S*", balance=0.25), [5, 6], steps=2, weights=weights)
    assert [one.seed for one in rows] == [5, 6]
    assert list(rows[0].pictures) == [*COLUMNS[:-1], "your settings"]
    assert {picture.shape for picture in rows[0].pictures.values()} == {(3, 128, 128)}
    assert not rows[0].pictures["your settings"].equal(rows[1].pictures["your settings"])
    assert rows[0].pictures[glance.TRUE].equal(rows[1].pictures[glance.TRUE])
    plan = demo.plan_of(pairs[0], Settings(balance=0.5), 3)
    assert plan.steps == 3
    assert plan.shares.tolist() != demo.plan_of(pairs[0], Settings(), 3).shares.tolist()


def test_the_hard_world_has_strangers(weights: Path) -> None:
    pairs = demo.choose_pairs([], [], weights, hard=True)
    assert [pair.content.kind for pair in pairs] == [STRANGER] * 2
    named = demo.choose_pairs(shipped(STRANGER), STYLES[:1], weights)
    assert named == pairs[:1]


def test_names_of_the_other_half_choose_from_that_half(weights: Path) -> None:
    pairs = demo.choose_pairs(shipped(INDIVIDUAL, "development"), [], weights)
    assert [pair.style.subject for pair in pairs] == shipped(STYLE, "development")


def test_the_last_column_is_what_a_new_user_has() -> None:
    shown = demo.compared(Settings())
    method, balance = shown[BALANCED.name]
    assert method.settings == Settings(**BALANCED.complete())
    assert balance == method.settings.balance
    published, _ = shown["K-LoRA as published (S)"]
    assert (published.settings.rule, published.settings.keep, published.settings.alpha) == ("K-LoRA", 0, 1.5)
    added, _ = shown["added 1 + 1"]
    assert (added.settings.rule, added.settings.content_weight, added.settings.style_weight) == (
        *("weights", 1),
        1,
    )


def test_a_prompt_of_ones_own(weights: Path) -> None:
    pairs = demo.choose_pairs(SUBJECTS[:1], STYLES[:1], weights)
    usual, other = (
        demo.run(pairs, Settings(), [0], prompt=prompt, steps=1, weights=weights)[0].pictures
        for prompt in (None, "a fox")
    )
    assert not usual[BALANCED.name].equal(other[BALANCED.name])


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("panda-crown", ["panda", "with a crown", "in porcelain style"]),
        (
            "jack-o-lantern-womans-hat-rosette",
            ["jack o lantern", "with a rosette", "and a woman's hat", "in porcelain style"],
        ),
        ("tulip", ["tulip", "in porcelain style"]),
    ],
)
def test_a_row_says_what_it_should_show(content: str, lines: list[str], tmp_path: Path) -> None:
    pair = Pair(recipe_of(f"content-{content}"), recipe_of("style-porcelain"), tmp_path)
    assert demo.described(pair) == lines


def test_every_setting_of_the_rule_is_an_option() -> None:
    chosen = parser().parse_args(["demo"])
    assert {one.name: getattr(chosen, one.name) for one in offered_settings()} == {
        one.name: one.default for one in offered_settings()
    }


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--content", "dragonfruit"), "the lab has no individual or stranger dragonfruit"),
        (("--style", "chalk"), "the lab has no style chalk"),
        (("--content", SUBJECTS[0], "--style", "engraving"), "the test half has no style engraving"),
        (("--content", SUBJECTS[0], "bear-top-hat"), "the test half has no individual bear-top-hat"),
        (("--content", "hamster-sunglasses"), "the LoRA content-hamster-sunglasses is not in"),
        (("--seeds", "0"), "seeds is 0"),
        (("--seed", "1" + "0" * 20), f"seed is 1{'0' * 20}; write a number from 0 to 4294967295."),
        (("--seed", "-1"), "seed is -1; write a number from 0 to 4294967295."),
        (
            ("--hard", "--content", SUBJECTS[0]),
            "--hard chooses among strangers by itself and cannot be combined with --content; leave one out.",
        ),
        (("--gamma", "big"), "gamma"),
    ],
)
def test_bad_input_is_one_sentence(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    assert main(_arguments(weights, tmp_path, *more)) == 2
    assert message in capsys.readouterr().err


def test_missing_weights_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = (
        f"klora: klora-lab.safetensors is not in {tmp_path}; name another folder, or train the lab: "
        "python -m klora.lab train\n"
    )
    for more in ((), ("--list",)):
        assert main(_arguments(tmp_path, tmp_path, *more)) == 2
        assert capsys.readouterr() == ("", told)


def test_a_file_as_the_folder_is_refused_before_a_picture_is_made(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_arguments: object, **_keywords: object) -> None:
        raise AssertionError("this is the work")

    monkeypatch.setattr(demo, "run", work)
    out = tmp_path / "text.txt"
    out.write_text("")
    assert main(_arguments(weights, out)) == 2
    told = f"klora: {out} cannot be used (it is a file); name a folder.\n"
    assert capsys.readouterr() == ("", told)


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
    told = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    assert told[INDIVIDUAL] == ", ".join(["bear-top-hat", *SUBJECTS])
    assert told[STYLE] == ", ".join(["engraving", *STYLES])
    assert told[STRANGER] == ", ".join(shipped(STRANGER))


def test_plan_without_files_takes_the_pair_that_ships(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--steps", "4"]) == 0
    assert "content disney" in capsys.readouterr().out
    assert main(["plan", "one.safetensors"]) == 2
    assert "one file was named" in capsys.readouterr().err
