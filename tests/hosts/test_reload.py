"""Reload UI on the real Forges: the scripts are run again in a process whose model and modules stay."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.error import URLError

import pytest

from tests.hosts.family import FORGE, NEO, REFORGE, Family, FamilyWebUI, running
from tests.hosts.server import BOOT_SECONDS, RefusedError
from tests.hosts.test_a1111 import CONTENT, CONTENT_WINS, PAIR, STYLE, STYLE_WINS


def _reload(webui: FamilyWebUI) -> None:
    born = webui.call("/probe/born")["at"]
    webui.call("/probe/reload", {})
    deadline = time.monotonic() + BOOT_SECONDS
    while time.monotonic() < deadline:
        time.sleep(0.5)
        try:
            if webui.call("/probe/born")["at"] != born:
                return
        except (URLError, ConnectionError, RefusedError):
            continue  # between two servers
    raise AssertionError("the WebUI did not come back")


def _wait_for_the_page(webui: FamilyWebUI) -> None:
    """reForge's API answers before its page is built, and fails until the scripts have their arguments."""
    deadline = time.monotonic() + BOOT_SECONDS
    while time.monotonic() < deadline:
        if "Startup time:" in webui.log.read_text(errors="replace"):
            return
        time.sleep(0.5)
    raise AssertionError("the page was not built")


def _pictures(webui: FamilyWebUI) -> dict[str, tuple[str, ...]]:
    made = {"base": webui.txt2img("a cat "), "added": webui.txt2img(PAIR), "fused": webui.txt2img(PAIR, {})}
    for settings, winner in ((CONTENT_WINS, CONTENT), (STYLE_WINS, STYLE)):
        made[winner] = webui.txt2img(f"a cat {winner}")
        assert webui.txt2img(PAIR, settings).pixels == made[winner].pixels
    pixels = {name: one.pixels for name, one in made.items()}
    assert len(set(pixels.values())) == len(pixels)
    return pixels


@pytest.mark.parametrize("family", [FORGE, NEO, REFORGE], ids=lambda family: family.name)
def test_reload_ui(family: Family, tmp_path: Path) -> None:
    with running(family, tmp_path, kinds=(), has_ui=True) as webui:
        _wait_for_the_page(webui)
        webui.options(sd_model_checkpoint="sd1-a.safetensors")
        webui.txt2img("a cat ", steps=1)
        before = _pictures(webui)
        for _ in range(2):
            _reload(webui)
            assert _pictures(webui) == before
