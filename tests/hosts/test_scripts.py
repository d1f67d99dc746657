"""The built-in scripts of img2img on real hosts: they make several pictures and put them together to
others.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.hosts.family import NEO, FamilyWebUI
from tests.hosts.server import Answer, WebUI
from tests.hosts.test_a1111 import CONTENT, CONTENT_WINS, PAIR, _plain_options  # noqa: F401 - a fixture

#: Script -> its arguments in the API: what each control has, in the order of the page.
BUILT_IN: dict[str, list[Any]] = {
    "SD upscale": [None, 16, "None", 2],
    "Poor man's outpainting": [32, 4, 0, ["left", "down"]],
    "Outpainting mk2": [None, 64, 4, ["right"], 1, 0.05],
    "Loopback": [3, 0.4, "Linear", "None"],
}

#: Forge Neo's has no text before its controls, and one more.
NEO_UPSCALE: list[Any] = [16, "None", 2, False]

#: Edge of what the script has painted at once; Outpainting mk2 fails by itself where that is its margin.
EDGE = {"Outpainting mk2": 128}


def _arguments(webui: WebUI, script: str) -> list[Any]:
    is_neo = isinstance(webui, FamilyWebUI) and webui.family is NEO
    return NEO_UPSCALE if is_neo and script == "SD upscale" else BUILT_IN[script]


def _by_script(webui: WebUI, start: Answer, script: str, prompt: str, klora: dict[str, Any] | None) -> Answer:
    # The host encodes the initial picture with the random state that the job before left behind.
    webui.txt2img("a cat ", steps=1)
    edge = EDGE.get(script, 64)
    request = {"denoising_strength": 0.6, "width": edge, "height": edge}
    arguments = _arguments(webui, script)
    return webui.img2img(prompt, klora, init=start, script_name=script, script_args=arguments, **request)


@pytest.mark.parametrize("script", BUILT_IN)
def test_built_in_scripts(webui: WebUI, script: str) -> None:
    """A winner alone is the host's own picture; a plan that is shown stands in no picture of the script's."""
    if script.lower() not in webui.call("/sdapi/v1/scripts")["img2img"]:
        pytest.skip(f"this host has no {script}")
    start = webui.txt2img("a cat ")
    only = _by_script(webui, start, script, f"a cat {CONTENT}", None)
    assert _by_script(webui, start, script, PAIR, CONTENT_WINS).pixels == only.pixels
    fused = _by_script(webui, start, script, PAIR, {})
    shown = _by_script(webui, start, script, PAIR, {"show_plan": True})
    assert shown.pixels == fused.pixels != only.pixels
    assert len(shown.pixels) == len(only.pixels)
    assert shown.size == only.size
