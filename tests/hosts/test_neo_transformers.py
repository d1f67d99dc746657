"""Forge Neo's newer models: transformers for which the engine has no names of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from klora.files import host_layer_to_canonical, is_attention
from tests.hosts.family import NEO, FamilyWebUI
from tests.hosts.test_neo import _plain_options, webui  # noqa: F401
from tests.hosts.transformer_cases import FLOW, flips_follow_sigma, fuses, load


@pytest.mark.parametrize("dialect", ["", "-native"])
def test_lumina(webui: FamilyWebUI, dialect: str) -> None:  # noqa: F811
    load(webui, "lumina")
    fuses(webui, f"content-lumina{dialect}", f"style-lumina{dialect}")


@pytest.mark.parametrize("dialects", [("-split", ""), ("-native", "-split")])
def test_z_image(webui: FamilyWebUI, dialects: tuple[str, str]) -> None:  # noqa: F811
    load(webui, "z-image")
    fuses(webui, f"content-z-image{dialects[0]}", f"style-z-image{dialects[1]}")


@pytest.mark.parametrize("kind", ["wan", "chroma", "qwen-image"])
def test_others(webui: FamilyWebUI, kind: str) -> None:  # noqa: F811
    load(webui, kind)
    fuses(webui, f"content-{kind}", f"style-{kind}")


@pytest.mark.parametrize("kind", ["klein-4b", "klein-9b"])
@pytest.mark.parametrize("dialect", ["", "-native"])
def test_klein(webui: FamilyWebUI, kind: str, dialect: str) -> None:  # noqa: F811
    """Flux.2's single blocks hold q, k and v in a third of their rows, and the rest is no attention."""
    load(webui, kind)
    fuses(webui, f"content-{kind}{dialect}", f"style-{kind}")


def test_mugen(webui: FamilyWebUI) -> None:  # noqa: F811
    """SDXL's layers, and SDXL's LoRAs are its own."""
    load(webui, "mugen")
    fuses(webui, "content-mugen", "style-mugen", {**FLOW, "width": 64, "height": 64})


def test_the_noise_clock_of_a_flow_model_is_its_sigma(webui: FamilyWebUI) -> None:  # noqa: F811
    load(webui, "chroma")
    parts = [f"double_blocks.0.{part}_attn.proj.weight" for part in ("img", "txt")]
    flips_follow_sigma(webui, "content-chroma", "style-chroma", parts)


#: Matrices inside attention that are none of q, k, v and output.
_BESIDE = (".gate",)


def test_attention_is_found_in_every_transformer_of_the_host() -> None:
    script = Path(__file__).parent / "list_attention.py"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [NEO.python, str(script), str(NEO.root)]
    ran = subprocess.run(command, check=True, cwd=NEO.root, env=environment, capture_output=True, text=True)
    found: dict[str, list[str]] = json.loads(ran.stdout.splitlines()[-1])
    assert len(found) >= 5
    missed = [
        (kind, name)
        for kind, names in found.items()
        for name in names
        if not name.endswith(_BESIDE) and not is_attention(_as_klora_calls_it(name))
    ]
    assert missed == []
    assert all(len(names) >= 4 for names in found.values())


def _as_klora_calls_it(name: str) -> str:
    return host_layer_to_canonical(f"diffusion_model.{name}.weight", "unknown") or f"diffusion_model.{name}"
