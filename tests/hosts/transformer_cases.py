"""What must hold on a host with any transformer: the core of the table, with small random checkpoints."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hosts.family import FamilyWebUI
from tests.hosts.make_transformer_loras import make_transformer_loras
from tests.hosts.test_a1111 import CONTENT_WINS, STYLE_WINS

HERE = Path(__file__).parent

#: What a flow model wants of a request.
FLOW: dict[str, Any] = {"cfg_scale": 1, "sampler_name": "Euler", "scheduler": "Simple", "steps": 4}


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
    for settings in ({}, {"schedule": "S*"}, {"clock": "noise"}):
        fused = webui.txt2img(pair, settings, **request)
        assert fused.pixels not in seen
        assert webui.txt2img(pair, settings, **request).pixels == fused.pixels
    assert webui.txt2img(pair, **request).pixels == added.pixels
    assert webui.txt2img("a cat ", **request).pixels == base.pixels
