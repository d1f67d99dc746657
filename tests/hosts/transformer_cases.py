"""What must hold on a host with any transformer: the core of the table, with small random checkpoints."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from klora.files import host_layer_to_canonical, read_lora
from klora.planning import planner_of_files
from klora.schedule import Moment, step_progress
from klora.settings import Settings
from tests.hosts.family import FamilyWebUI
from tests.hosts.make_transformer_loras import make_transformer_loras
from tests.hosts.test_a1111 import CONTENT_WINS, STYLE_WINS
from tests.published import PUBLISHED

HERE = Path(__file__).parent

#: What a flow model wants of a request; the pictures are small because these models are not.
FLOW: dict[str, Any] = {
    "cfg_scale": 1,
    "sampler_name": "Euler",
    "scheduler": "Simple",
    "steps": 3,
    "width": 32,
    "height": 32,
}


def load(webui: FamilyWebUI, kind: str) -> None:
    """Make the checkpoint of ``kind`` and LoRAs for it, unless they are there, and load it."""
    made = webui.models / f"{kind}.safetensors"
    if not made.exists():
        root, python = webui.family.root, webui.family.python
        command = [python, str(HERE / "make_transformers.py"), str(root), str(webui.models), kind]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run(command, check=True, cwd=root, env=environment, capture_output=True)
    make_transformer_loras(made, webui.models / "loras")
    for what in ("checkpoints", "loras"):
        webui.call(f"/sdapi/v1/refresh-{what}", {})
    webui.options(sd_model_checkpoint=made.name)


def fuses(webui: FamilyWebUI, content: str, style: str, request: Mapping[str, Any] = FLOW) -> None:
    """Two LoRAs, by name, win and lose on the loaded checkpoint, take turns, and leave no trace."""
    content, style = f"<lora:{content}:1>", f"<lora:{style}:1>"
    pair = f"a cat {content}{style}"
    base, added = webui.txt2img("a cat ", **request), webui.txt2img(pair, **request)
    seen = [base.pixels, added.pixels]
    for settings, winner in ((CONTENT_WINS, content), (STYLE_WINS, style)):
        only = webui.txt2img(f"a cat {winner}", **request)
        assert only.pixels not in seen
        assert webui.txt2img(pair, settings, **request).pixels == only.pixels
        seen.append(only.pixels)
    starred = {**PUBLISHED, "schedule": "S*"}
    fused = [webui.txt2img(pair, settings, **request).pixels for settings in ({}, starred, {})]
    assert fused[0] == fused[2]
    assert not set(fused) & set(seen)
    assert webui.txt2img(pair, **request).pixels == added.pixels
    assert webui.txt2img("a cat ", **request).pixels == base.pixels


def flips_follow_sigma(webui: FamilyWebUI, content: str, style: str, weights: Sequence[str]) -> None:
    """With the clock ``noise`` a flow model's layers flip when 1 - sigma says so, seen in its ``weights``.

    ``weights`` are parameters of the denoiser that are one contested layer each.
    """
    pair = f"a cat <lora:{content}:1><lora:{style}:1>"
    request = {**FLOW, "steps": 6}
    rule = {**PUBLISHED, "clock": "noise", "alpha": 1.5, "beta": 0.5}
    seen = [_seen(webui, pair, settings, weights, request) for settings in (CONTENT_WINS, STYLE_WINS, rule)]
    contents, styles = (look["weights"][0] for look in seen[:2])
    assert all(contents[name] != styles[name] for name in weights)
    sigmas = seen[2]["sigmas"]
    assert len(sigmas) == len(seen[2]["weights"]) == 6
    assert sigmas[0] == pytest.approx(1, abs=0.01)  # a flow model: its sigma is the share of noise

    folder = webui.models / "loras"
    files = [read_lora(folder / f"{name}.safetensors") for name in (content, style)]
    settings = Settings.from_mapping(rule)
    planner = planner_of_files(files[0], files[1], settings)
    layers = [host_layer_to_canonical(f"diffusion_model.{name}", "unknown") or name for name in weights]

    def expected(progress: Sequence[float]) -> list[list[float]]:
        plan = planner.plan([Moment(step, 6, noise) for step, noise in enumerate(progress)])
        places = {layer: place for place, layer in enumerate(plan.layers)}
        return [
            [
                contents[name] if choice[places[layer]] else styles[name]
                for name, layer in zip(weights, layers, strict=True)
            ]
            for choice in plan.content_leads
        ]

    found = [[look[name] for name in weights] for look in seen[2]["weights"]]
    assert found == expected([1 - sigma for sigma in sigmas])
    assert found != expected([step_progress(step, 6) for step in range(6)])
    assert found[0] != found[-1]  # something has flipped


def _seen(
    webui: FamilyWebUI,
    prompt: str,
    settings: Mapping[str, Any],
    weights: Sequence[str],
    request: Mapping[str, Any],
) -> dict[str, Any]:
    """What the probe sees while a picture is made: noise levels, and sums of weights at each call."""
    webui.txt2img(prompt, dict(settings), **request)  # so that the model is there to be watched
    webui.call("/probe/arm", {"weights": list(weights)})
    webui.txt2img(prompt, dict(settings), **request)
    look: dict[str, Any] = webui.call("/probe/look")
    webui.call("/probe/arm", {})
    return look
