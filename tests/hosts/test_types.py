"""Types of LoRA other than the plain one, on real hosts: full-matrix LoKr, whose rank comes from its file,
LoHa, and DoRA, whose delta hangs on the checkpoint's weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.hosts.family import FamilyWebUI
from tests.hosts.server import WebUI
from tests.hosts.share_cases import NAMES, check_guidance
from tests.hosts.test_a1111 import CONTENT_WINS, STYLE_WINS, _plain_options  # noqa: F401 - a fixture

FACTOR = 4
CONTENT, STYLE = "<lora:content-lokr:1>", "<lora:style-lokr:1>"


Normal = Callable[..., Tensor]


def lokr(normal: Normal, rows: int, columns: int) -> dict[str, Tensor]:
    """Parameters of a full-matrix LoKr."""
    return {
        "lokr_w1": 0.1 * normal(FACTOR, FACTOR),
        "lokr_w2": 0.1 * normal(rows // FACTOR, columns // FACTOR),
    }


def loha(normal: Normal, rows: int, columns: int) -> dict[str, Tensor]:
    """Parameters of a LoHa of rank 2."""
    shapes = {"a": (rows, 2), "b": (2, columns)}
    parameters = {
        f"hada_w{half}_{side}": 0.3 * normal(*shape) for half in "12" for side, shape in shapes.items()
    }
    return {**parameters, "alpha": torch.tensor(1.0)}


def dora(normal: Normal, rows: int, columns: int) -> dict[str, Tensor]:
    """Parameters of a LoRA of rank 4 with a magnitude for each input, near that of the tests' checkpoints."""
    magnitude = math.sqrt(rows / columns) * (1 + 0.2 * normal(1, columns))
    return {
        "lora_up.weight": 0.3 * normal(rows, 4),
        "lora_down.weight": 0.3 * normal(4, columns),
        "alpha": torch.tensor(4.0),
        "dora_scale": magnitude,
    }


def write(like: Path, target: Path, kind: Callable[[Normal, int, int], dict[str, Tensor]], seed: int) -> None:
    """Random numbers of a type in the attention layers of a LoRA file."""
    generator = torch.Generator().manual_seed(seed)
    stored, tensors = load_file(like), dict[str, Tensor]()
    for key, down in stored.items():
        stem, _, parameter = key.partition(".")
        if parameter != "lora_down.weight" or down.ndim != 2 or "attn" not in stem:
            continue
        rows = stored[f"{stem}.lora_up.weight"].shape[0]
        made = kind(lambda *shape: torch.randn(shape, generator=generator), rows, down.shape[1])
        tensors.update({f"{stem}.{name}": one for name, one in made.items()})
    assert tensors
    save_file(tensors, target)


KINDS = {"lokr": lokr, "loha": loha, "dora": dora}


@pytest.fixture
def loras(webui: WebUI, request: pytest.FixtureRequest) -> None:
    """Content, style and a third of each type, known to the host."""
    models: Path = webui.models if isinstance(webui, FamilyWebUI) else request.getfixturevalue("models")
    folder = models / "loras"
    for name, kind in KINDS.items():
        for seed, role in enumerate(("content", "style", "third")):
            write(folder / "content-sd1-a.safetensors", folder / f"{role}-{name}.safetensors", kind, seed)
    webui.call("/sdapi/v1/refresh-loras", {})


@pytest.mark.usefixtures("loras")
def test_full_matrix_lokr(webui: WebUI) -> None:
    pair = f"a cat {CONTENT}{STYLE}"
    base, added = webui.txt2img("a cat "), webui.txt2img(pair)
    for settings, winner in ((CONTENT_WINS, CONTENT), (STYLE_WINS, STYLE)):
        only = webui.txt2img(f"a cat {winner}")
        assert webui.txt2img(pair, settings).pixels == only.pixels != base.pixels
    fused = webui.txt2img(pair, {})
    assert fused.pixels not in (base.pixels, added.pixels)
    assert webui.txt2img(pair, {}).pixels == fused.pixels
    assert webui.txt2img(pair).pixels == added.pixels


@pytest.mark.usefixtures("loras")
@pytest.mark.parametrize("guidance", ["content", "none", "4x"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_unconditional_rows(webui: WebUI, kind: str, guidance: str) -> None:
    check_guidance(webui, guidance, names=(f"content-{kind}", f"style-{kind}"))


@pytest.mark.usefixtures("loras")
@pytest.mark.parametrize("names", [NAMES, ("content-dora", "style-dora")], ids=["plain", "dora"])
@pytest.mark.parametrize("guidance", ["content", "none"])
def test_the_unconditional_rows_beside_a_third_dora(
    webui: WebUI, guidance: str, names: tuple[str, str]
) -> None:
    check_guidance(webui, guidance, names=names, third="third-dora")


@pytest.mark.usefixtures("loras")
@pytest.mark.parametrize("names", [NAMES, ("content-dora", "style-dora")], ids=["plain", "dora"])
def test_dora_in_functional_mode(webui: WebUI, names: tuple[str, str]) -> None:
    """AUTOMATIC1111 leaves a DoRA's magnitudes out where it applies LoRAs in each forward."""
    merged = webui.txt2img("a cat <lora:third-dora:1>")
    webui.options(lora_functional=True)
    assert webui.txt2img("a cat <lora:third-dora:1>").pixels != merged.pixels
    check_guidance(webui, "none", names=names, third="third-dora")
