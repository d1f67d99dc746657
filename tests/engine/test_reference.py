"""The engine against decisions of the authors' published rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from klora.__main__ import main
from klora.planning import plan_files
from tests.published import PUBLISHED_OPTIONS, published

DATA = Path(__file__).parent.parent / "data" / "reference"
PAIRS = ("open_a", "open_b", "open_c")
PATTERNS = {"s": "S", "s*": "S*"}


def reference(pair: str) -> dict[str, Any]:
    return json.loads((DATA / f"{pair}.json").read_text(encoding="utf-8"))


def files(pair: str) -> tuple[str, str]:
    return str(DATA / f"{pair}_content.safetensors"), str(DATA / f"{pair}_style.safetensors")


def check(plan: dict[str, Any], expected: dict[str, Any], pattern: str) -> None:
    assert plan["layers"] == expected["layers"]
    assert plan["steps"] == expected["steps"]
    assert plan["choices"] == expected["patterns"][pattern]["decisions"]
    assert plan["top_k"] == [expected["top_k"]] * 24
    assert plan["content_score"] == pytest.approx(expected["content_top_k_sum"], rel=1e-5)
    assert plan["style_score"] == pytest.approx(expected["style_top_k_sum"], rel=1e-5)
    assert plan["gamma"] == pytest.approx(expected["gamma"], rel=1e-5)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("pair", PAIRS)
def test_api_decides_as_the_authors(pair: str, pattern: str) -> None:
    expected = reference(pair)
    rule = expected["patterns"][pattern]
    settings = published(
        schedule=PATTERNS[pattern],
        alpha=rule["alpha"],
        beta=str(rule["beta"]),
        gamma="published",
        clock="published",
    )
    check(plan_files(*files(pair), settings, expected["steps"]).as_json(), expected, pattern)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("pair", PAIRS)
def test_command_decides_as_the_authors(pair: str, pattern: str, tmp_path: Path) -> None:
    expected = reference(pair)
    written = tmp_path / "plan.json"
    options = [*PUBLISHED_OPTIONS, "--gamma", "published", "--clock", "published", "--schedule", pattern]
    if pattern == "s*":
        options += ["--beta", "1.275"]
    steps = ["--steps", str(expected["steps"]), "--json", str(written)]
    assert main(["plan", *files(pair), *options, *steps]) == 0
    check(json.loads(written.read_text(encoding="utf-8")), expected, pattern)


@pytest.mark.parametrize("pair", PAIRS)
def test_the_paper_s_own_gamma_and_clock_decide_otherwise(pair: str) -> None:
    """Else the tests above would not tell the two apart."""
    expected = reference(pair)
    plan = plan_files(*files(pair), published(), expected["steps"])
    assert plan.choices() != expected["patterns"]["s"]["decisions"]
    assert plan.gamma != pytest.approx(expected["gamma"], rel=1e-3)
