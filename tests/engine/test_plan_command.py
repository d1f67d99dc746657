"""``python -m klora plan``: what it prints and writes, and how it refuses."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from safetensors.torch import load_file

from klora.__main__ import main, parser
from klora.rules import RULES, Rule
from klora.settings import Settings, rule_settings
from tests.engine.lora_files import ATTENTION, BLOCK, FEED_FORWARD, write_lora
from tests.engine.slow_formula import magnitudes, product
from tests.published import PUBLISHED_OPTIONS

Capture = pytest.CaptureFixture[str]

#: A plan of the paper's rule, but for options that follow.
PLAN = ("plan", *PUBLISHED_OPTIONS)


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    layers = (FEED_FORWARD, *ATTENTION)
    return [
        str(write_lora(tmp_path / "fox.safetensors", layers, rank=2, alpha=1.0, seed=1)),
        str(write_lora(tmp_path / "ink.safetensors", layers[::-1], rank=3, seed=2)),
    ]


def refused(arguments: list[str], capsys: Capture, *named: str) -> None:
    """Exit status 2 and one line on stderr that holds all of ``named``."""
    capsys.readouterr()
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert told.err.startswith("klora: ")
    for one in named:
        assert one.lower() in told.err.lower()


def test_json_holds_the_plan(pair: list[str], tmp_path: Path) -> None:
    written = tmp_path / "plan.json"
    assert main([*PLAN, *pair, "--steps", "6", "--other-layers", "fuse", "--json", str(written)]) == 0
    told = json.loads(written.read_text(encoding="utf-8"))
    assert set(told) == {
        "layers",
        "steps",
        "gamma",
        "top_k",
        "content_score",
        "style_score",
        "choices",
        "loras",
        "shares",
        "unconditional",
        "rule",
        "balance",
        "guidance",
    }
    assert told["loras"] == ["fox", "ink"]
    assert told["unconditional"] is None
    assert [[[1, 0] if letter == "C" else [0, 1] for letter in step] for step in told["choices"]] == told[
        "shares"
    ]
    block = "down_blocks.0.attentions.0.transformer_blocks.0."
    in_forward_order = ["attn1.to_q", "attn1.to_k", "attn2.to_q", "ff.net.2"]
    assert told["layers"] == [block + one for one in in_forward_order]
    assert told["steps"] == len(told["choices"]) == 6
    assert all(len(step) == 4 and set(step) <= {"C", "S"} for step in told["choices"])
    assert told["top_k"] == [6] * 4


def test_scores_are_of_the_scaled_product(pair: list[str], tmp_path: Path) -> None:
    """alpha / rank for the content, 1 for the style, which has no alpha; before gamma."""
    written = tmp_path / "plan.json"
    main([*PLAN, *pair, "--top-k", "5", "--other-layers", "fuse", "--json", str(written)])
    told = json.loads(written.read_text(encoding="utf-8"))
    for field, file, scale in (("content_score", pair[0], 0.5), ("style_score", pair[1], 1.0)):
        tensors = {key: value.tolist() for key, value in load_file(file).items()}
        for score, layer in zip(told[field], (*ATTENTION, FEED_FORWARD), strict=True):
            up, down = (tensors[f"{layer}.lora_{one}.weight"] for one in ("up", "down"))
            assert score == pytest.approx(math.fsum(magnitudes(product(up, down, scale))[:5]), rel=1e-5)


@pytest.mark.parametrize("other_layers", ["fuse", "both", "content", "style", "none"])
def test_other_layers(pair: list[str], tmp_path: Path, other_layers: str) -> None:
    written = tmp_path / "plan.json"
    main([*PLAN, *pair, "--other-layers", other_layers, "--json", str(written)])
    layers = json.loads(written.read_text(encoding="utf-8"))["layers"]
    assert len(layers) == (4 if other_layers == "fuse" else 3)
    assert any("ff.net.2" in layer for layer in layers) == (other_layers == "fuse")


def test_summary_tells_shares_gamma_layers_and_flips(pair: list[str], capsys: Capture) -> None:
    assert main([*PLAN, *pair, "--steps", "4", "--alpha", "0", "--beta", "0"]) == 0
    told = capsys.readouterr().out
    assert "fox: 100.0% of the layer-steps" in told
    assert "ink: 0.0%" in told
    assert "3 contested layers, 4 steps" in told
    assert "flips 0" in told
    assert "gamma" in told


def test_picture_is_a_png_that_shows_the_shares(pair: list[str], tmp_path: Path) -> None:
    shares = []
    for beta in ("0", "1e9"):
        file = tmp_path / f"plan{beta}.png"
        assert main([*PLAN, *pair, "--alpha", "0", "--beta", beta, "--picture", str(file)]) == 0
        assert file.read_bytes().startswith(b"\x89PNG")
        pixels = imread(file)
        height, width = pixels.shape[:2]
        assert 300 <= height <= 1500
        assert 300 <= width <= 1500
        orange = np.abs(pixels[..., :3] - np.array([0xF2, 0x8E, 0x2B]) / 255).max(axis=2) < 0.02
        shares.append(orange.mean())
    content_wins, style_wins = shares
    assert content_wins > 0.4
    assert style_wins < 0.02


def test_a_missing_file(pair: list[str], capsys: Capture, tmp_path: Path) -> None:
    refused(["plan", pair[0], str(tmp_path / "none.safetensors")], capsys, "none.safetensors")


def test_a_web_page_saved_as_a_lora(pair: list[str], capsys: Capture, tmp_path: Path) -> None:
    page = tmp_path / "login.safetensors"
    page.write_text("<!DOCTYPE html>\n<html>\n<body>Sign in</body>\n</html>\n" * 20, encoding="utf-8")
    refused(["plan", str(page), pair[1]], capsys, "login.safetensors", "web page")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_names_file_and_layer(pair: list[str], capsys: Capture, tmp_path: Path, bad: float) -> None:
    broken = write_lora(tmp_path / "broken.safetensors", bad=bad)
    refused(["plan", pair[0], str(broken)], capsys, "broken", "attn2.to_q", "NaN")


def test_different_base_models(capsys: Capture, tmp_path: Path) -> None:
    sd1 = write_lora(tmp_path / "old.safetensors", (BLOCK + "attn2_to_k",), size=(320, 768))
    block = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    sdxl = write_lora(tmp_path / "new.safetensors", (block,), size=(640, 2048))
    refused(["plan", str(sd1), str(sdxl)], capsys, "old", "SD1", "new", "SDXL")


def test_no_shared_layer(capsys: Capture, tmp_path: Path) -> None:
    one = write_lora(tmp_path / "one.safetensors", ATTENTION[:1])
    other = write_lora(tmp_path / "other.safetensors", ATTENTION[1:])
    refused(["plan", str(one), str(other)], capsys, "one", "other", "share no attention layer")


def test_only_other_layers_shared(capsys: Capture, tmp_path: Path) -> None:
    one = write_lora(tmp_path / "one.safetensors", (FEED_FORWARD, ATTENTION[0]))
    other = write_lora(tmp_path / "other.safetensors", (FEED_FORWARD, ATTENTION[1]))
    refused(["plan", str(one), str(other)], capsys, "one", "other", "attention")


def test_layers_of_different_size(capsys: Capture, tmp_path: Path) -> None:
    one = write_lora(tmp_path / "one.safetensors", size=(12, 12))
    other = write_lora(tmp_path / "other.safetensors", size=(16, 16))
    refused(["plan", str(one), str(other)], capsys, "other.safetensors", "attn1.to_q", "[16, 16]", "[12, 12]")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--steps", "0"], "steps is 0"),
        (["--steps", "100000"], "steps is 100000"),
        (["--strength", "0"], "strength"),
        (["--cfg-scale", "nan"], "cfg-scale is nan; write a number from 0 to 100."),
        (["--cfg-scale", "inf"], "cfg-scale is inf; write a number from 0 to 100."),
        (["--cfg-scale", "-3"], "cfg-scale is -3; write a number from 0 to 100."),
        (["--cfg-scale", "100.5"], "cfg-scale is 100.5; write a number from 0 to 100."),
        (["--keep", "2"], "keep"),
        (["--guidance", "0.5"], "guidance"),
        (["--rule", "k-loda"], "rule"),
        (["--alpha", "nan"], "alpha"),
        (["--beta", "-1"], "beta"),
        (["--top-k", "0%"], "top_k"),
        (["--schedule", "T"], "schedule"),
        (["--schedule", "s*", "--alpha", "0"], "alpha is 0"),
    ],
)
def test_options_out_of_range(pair: list[str], capsys: Capture, options: list[str], named: str) -> None:
    refused([*PLAN, *pair, *options], capsys, named)


def test_a_folder_that_is_not_there(pair: list[str], capsys: Capture, tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere" / "plan.json")
    assert main(["plan", *pair, "--json", missing]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_as_a_program(pair: list[str], tmp_path: Path) -> None:
    """stderr of the real program holds the one line and nothing of its libraries."""
    command = [sys.executable, "-m", "klora", "plan", pair[0], str(tmp_path / "none.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def plan_of(pair: list[str], folder: Path, *options: str) -> dict[str, object]:
    written = folder / "plan.json"
    assert main([*PLAN, *pair, *options, "--json", str(written)]) == 0
    told: dict[str, object] = json.loads(written.read_text(encoding="utf-8"))
    return told


OFFERED = [rule for rule in RULES if not rule.is_for_lab_only]
OF_THE_LAB = [rule for rule in RULES if rule.is_for_lab_only]


@pytest.mark.parametrize("rule", OFFERED, ids=lambda rule: rule.name)
def test_every_rule_and_its_settings_are_options(pair: list[str], tmp_path: Path, rule: Rule) -> None:
    settings = [one for one in rule.settings if one.type == "number"]
    options = [word for one in settings for word in (f"--{one.name.replace('_', '-')}", str(one.maximum))]
    told = plan_of(pair, tmp_path, "--steps", "3", "--rule", rule.name.lower(), "--balance", "0.25", *options)
    assert told["rule"] == rule.name
    assert told["balance"] == 0.25
    shares = np.array(told["shares"])
    assert shares.shape == (3, len(told["layers"]), 2)  # type: ignore[arg-type]
    assert (shares >= 0).all()


def test_guidance_tells_the_shares_of_both_passes(pair: list[str], tmp_path: Path) -> None:
    weights = ["--rule", "weights", "--content-from", "0.8", "--content-to", "0.8", "--style-to", "0"]
    told = plan_of(pair, tmp_path, *weights, "--steps", "3", "--guidance", "3", "--cfg-scale", "5")
    shares, unconditional = (np.array(told[name]) for name in ("shares", "unconditional"))
    assert shares[:, 0].tolist() == [[0.8, 1], [0.8, 0.5], [0.8, 0]]
    assert unconditional[:, 0].tolist() == [[0.8, 0.5], [0.8, 0.25], [0.8, 0]]
    told = plan_of(pair, tmp_path, *weights, "--steps", "3", "--guidance", "none")
    assert np.array(told["unconditional"]).max() == 0
    assert plan_of(pair, tmp_path, "--guidance", "content", "--cfg-scale", "1")["unconditional"] is None


def test_the_clock_noise_begins_where_the_strength_says(pair: list[str], tmp_path: Path) -> None:
    weights = [
        "--rule",
        "weights",
        "--style-from",
        "0",
        "--style-to",
        "1",
        "--clock",
        "noise",
        "--steps",
        "5",
    ]
    for strength, expected in ((1.0, [0, 0.25, 0.5, 0.75, 1]), (0.5, [0.5, 0.625, 0.75, 0.875, 1])):
        told = plan_of(pair, tmp_path, *weights, "--strength", str(strength))
        assert np.array(told["shares"])[:, 0, 1].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("command", ["plan", "report", "merge", "demo"])
@pytest.mark.parametrize("rule", OF_THE_LAB, ids=lambda rule: rule.name)
def test_rules_of_the_lab_are_no_rules_of_the_command_line(
    command: str, rule: Rule, pair: list[str], tmp_path: Path, capsys: Capture
) -> None:
    known = ", ".join(one.name for one in OFFERED)
    more = {"merge": [*pair, "--out", str(tmp_path / "out.safetensors")], "demo": []}.get(command, pair)
    assert main([command, *more, "--rule", rule.name]) == 2
    assert capsys.readouterr() == ("", f"klora: rule is {rule.name!r}; write one of: {known}.\n")
    assert Settings(rule=rule.name).rule == rule.name


@pytest.mark.parametrize("command", ["plan", "report", "merge", "demo"])
def test_options_are_what_a_user_meets(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        parser([command]).parse_args([command, "--help"])
    told = capsys.readouterr().out
    offered = {one.name for one in Settings.offered()}
    options = {one.name: f"--{one.name.replace('_', '-')} " in told for one in rule_settings()}
    assert {name for name, is_there in options.items() if is_there} == options.keys() & offered
    assert not options["coin_seed"]
    assert not options["until"]
