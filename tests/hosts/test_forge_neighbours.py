"""Beside other people's extensions on the real Forge, by hash of the pixels: those that are made for it.

`tests.hosts.neighbours` says how they are had. Ground truth is the host's own picture: without any neighbour
where they only stand by, and with the same neighbour and the same tags where it takes part.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.family import FORGE, FamilyWebUI, running
from tests.hosts.server import Answer
from tests.hosts.share_cases import SAME
from tests.hosts.test_neighbours import (  # noqa: F401 - a fixture
    BLOCKS,
    CONTENT,
    CONTENT_WINS,
    PAIR,
    STYLE,
    STYLE_WINS,
    folder,
    needs,
    tag,
)
from tests.published import PUBLISHED

COUPLE, BLOCK_WEIGHT = "sd-forge-couple", "sd-webui-lora-block-weight"

#: What gives the two sides of the guidance different shares.
SIDES: dict[str, Any] = {**PUBLISHED, "keep": 0.5, "guidance": "content"}

#: Two regions side by side, without a background, one line of the prompt for each.
SIDE_BY_SIDE: list[Any] = [True, False, "Basic", "", "Horizontal", "None", 0.5, [], "off", False, True]


@pytest.fixture(scope="module")
def beside(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FamilyWebUI]:  # noqa: F811
    """Forge with both neighbours, as far as they are there, running."""
    there = [folder / name for name in (COUPLE, BLOCK_WEIGHT) if (folder / name).is_dir()]
    with running(FORGE, tmp_path_factory.mktemp("beside"), kinds=(), beside=there) as webui:
        yield webui


@pytest.fixture(autouse=True)
def _traceless(beside: FamilyWebUI, forge: FamilyWebUI) -> Iterator[None]:
    """After the test, base and added picture are those of the WebUI without neighbours."""
    yield
    for prompt in ("a cat ", PAIR):
        assert beside.txt2img(prompt).pixels == forge.txt2img(prompt).pixels


def test_beside_neighbours_that_stand_by_every_picture_is_the_same(
    beside: FamilyWebUI, forge: FamilyWebUI
) -> None:
    for settings in (CONTENT_WINS, STYLE_WINS, {}, SIDES):
        assert beside.txt2img(PAIR, settings).pixels == forge.txt2img(PAIR, settings).pixels


def _side_by_side(webui: FamilyWebUI, loras: str, settings: dict[str, Any] | None) -> Answer:
    scripts: dict[str, Any] = {"Forge Couple": {"args": SIDE_BY_SIDE}}
    if settings is not None:
        scripts["K-LoRA"] = {"args": [settings]}
    return webui.txt2img(f"a red cat {loras}\na blue dog", width=128, alwayson_scripts=scripts)


@pytest.mark.parametrize(("settings", "alone"), [(CONTENT_WINS, CONTENT), (STYLE_WINS, STYLE)])
def test_a_winner_alone_in_the_regions_of_forge_couple(
    folder: Path,  # noqa: F811
    beside: FamilyWebUI,
    settings: dict[str, Any],
    alone: str,
) -> None:
    needs(folder, COUPLE)
    only = _side_by_side(beside, alone, None)
    assert "forge_couple: True" in only.infotexts[0]
    assert only.pixels != beside.txt2img(f"a red cat {alone}\na blue dog", width=128).pixels
    assert _side_by_side(beside, CONTENT + STYLE, settings).pixels == only.pixels


@pytest.mark.parametrize("settings", [{}, SIDES], ids=["default", "sides"])
def test_a_fused_pair_in_the_regions_of_forge_couple(
    folder: Path,  # noqa: F811
    beside: FamilyWebUI,
    settings: dict[str, Any],
) -> None:
    needs(folder, COUPLE)
    fused = _side_by_side(beside, CONTENT + STYLE, settings)
    assert "forge_couple: True" in fused.infotexts[0]
    assert "K-LoRA: content-sd1-a" in fused.infotexts[0]
    others = [_side_by_side(beside, loras, None).pixels for loras in (CONTENT, STYLE, CONTENT + STYLE)]
    assert fused.pixels not in others
    assert _side_by_side(beside, CONTENT + STYLE, settings).pixels == fused.pixels


@pytest.mark.parametrize("lines", [2, 3, 4])
@pytest.mark.parametrize("settings", [{}, {**SIDES, "guidance": "none"}], ids=["default", "none"])
def test_the_negative_side_in_the_regions_of_forge_couple(
    folder: Path,  # noqa: F811
    beside: FamilyWebUI,
    lines: int,
    settings: dict[str, Any],
) -> None:
    """Regions that all say the same make the picture of that prompt, if no row is taken for another."""
    needs(folder, COUPLE)
    text, pair = "a red cat", CONTENT + STYLE

    def made(prompt: str, klora: dict[str, Any], is_cut: bool) -> Answer:
        scripts = {"Forge Couple": {"args": SIDE_BY_SIDE}} if is_cut else {}
        return beside.txt2img(prompt, klora, width=128, alwayson_scripts=scripts)

    prompt = "\n".join([f"{text} {pair}", *[text] * (lines - 1)])
    whole, cut = made(f"{text} {pair}", settings, False), made(prompt, settings, True)
    assert "forge_couple: True" in cut.infotexts[0]
    assert cut.mean_distance(whole) < SAME
    both = made(prompt, {**settings, "guidance": "both"}, True)
    assert both.mean_distance(cut) > 10 * SAME  # so it would be seen


def test_weights_of_blocks_count(folder: Path, beside: FamilyWebUI) -> None:  # noqa: F811
    needs(folder, BLOCK_WEIGHT)
    content, style = (tag(name, f"lbw={BLOCKS}") for name in ("content", "style"))
    own = beside.txt2img(f"a cat {content}")
    assert own.pixels != beside.txt2img(f"a cat {CONTENT}").pixels
    assert beside.txt2img(f"a cat {content}{style}", CONTENT_WINS).pixels == own.pixels
