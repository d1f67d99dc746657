"""Reload UI on the real WebUIs: the scripts are run again in a process whose model and modules stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hosts.pages import OPENERS, Opener
from tests.hosts.server import WebUI
from tests.hosts.test_a1111 import CONTENT, CONTENT_WINS, PAIR, STYLE, STYLE_WINS


def pictures(webui: WebUI) -> dict[str, tuple[str, ...]]:
    """Each kind of picture, which all differ; a winner alone is the WebUI's own picture with it alone."""
    made = {"base": webui.txt2img("a cat "), "added": webui.txt2img(PAIR), "fused": webui.txt2img(PAIR, {})}
    for settings, winner in ((CONTENT_WINS, CONTENT), (STYLE_WINS, STYLE)):
        made[winner] = webui.txt2img(f"a cat {winner}")
        assert webui.txt2img(PAIR, settings).pixels == made[winner].pixels
    pixels = {name: answer.pixels for name, answer in made.items()}
    assert len(set(pixels.values())) == len(pixels)
    return pixels


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS)
def test_reload_ui(opener: Opener, tmp_path: Path) -> None:
    with opener(tmp_path) as page:
        page.webui.options(sd_model_checkpoint="sd1-a.safetensors")
        page.webui.txt2img("a cat ", steps=1)
        before = pictures(page.webui)
        for _ in range(2):
            page.reload()
            assert pictures(page.webui) == before
