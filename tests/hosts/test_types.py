"""Types of LoRA that have no rank, on real hosts: full-matrix LoKr, whose rank comes from its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.hosts.family import FamilyWebUI
from tests.hosts.server import WebUI
from tests.hosts.test_a1111 import CONTENT_WINS, STYLE_WINS, _plain_options  # noqa: F401 - a fixture

FACTOR = 4
CONTENT, STYLE = "<lora:content-lokr:1>", "<lora:style-lokr:1>"


def write_lokr(like: Path, target: Path, seed: int) -> None:
    """A full-matrix LoKr of random numbers in the attention layers of a LoRA file."""
    generator = torch.Generator().manual_seed(seed)
    stored, tensors = load_file(like), dict[str, Tensor]()
    for key, down in stored.items():
        stem, _, parameter = key.partition(".")
        if parameter != "lora_down.weight" or down.ndim != 2 or "attn" not in stem:
            continue
        rows, columns = stored[f"{stem}.lora_up.weight"].shape[0], down.shape[1]
        tensors[f"{stem}.lokr_w1"] = torch.randn(FACTOR, FACTOR, generator=generator) * 0.1
        tensors[f"{stem}.lokr_w2"] = torch.randn(rows // FACTOR, columns // FACTOR, generator=generator) * 0.1
    assert tensors
    save_file(tensors, target)


@pytest.fixture
def lokr(webui: WebUI, request: pytest.FixtureRequest) -> None:
    """Content and style as full-matrix LoKr, known to the host."""
    models: Path = webui.models if isinstance(webui, FamilyWebUI) else request.getfixturevalue("models")
    loras = models / "loras"
    for seed, role in enumerate(("content", "style")):
        write_lokr(loras / "content-sd1-a.safetensors", loras / f"{role}-lokr.safetensors", seed)
    webui.call("/sdapi/v1/refresh-loras", {})


def test_full_matrix_lokr(webui: WebUI, lokr: None) -> None:
    pair = f"a cat {CONTENT}{STYLE}"
    base, added = webui.txt2img("a cat "), webui.txt2img(pair)
    for settings, winner in ((CONTENT_WINS, CONTENT), (STYLE_WINS, STYLE)):
        only = webui.txt2img(f"a cat {winner}")
        assert webui.txt2img(pair, settings).pixels == only.pixels != base.pixels
    fused = webui.txt2img(pair, {})
    assert fused.pixels not in (base.pixels, added.pixels)
    assert webui.txt2img(pair, {}).pixels == fused.pixels
    assert webui.txt2img(pair).pixels == added.pixels
