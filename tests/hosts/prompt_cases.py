"""What prompts say of LoRAs, on a real WebUI: cases that every host's module collects.

Ground truth is the host's own picture of the same tags, or of files that it reads by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from klora.files.conversion import convert
from tests.hosts.make_loras import ROLES, seeded_layer
from tests.hosts.server import RefusedError, WebUI
from tests.hosts.share_cases import CONTENT, HIRES, NAMES, STYLE, constant, windowed
from tests.hosts.test_a1111 import CONTENT_WINS, STYLE_WINS
from tests.published import PUBLISHED

_LAYERS = "cond_stage_model.transformer.text_model.encoder.layers."


@pytest.mark.parametrize(("settings", "winner"), [(CONTENT_WINS, CONTENT), (STYLE_WINS, STYLE)])
def test_a_tag_that_stands_twice_counts_as_often_as_the_host_counts_it(
    webui: WebUI, settings: dict[str, Any], winner: str
) -> None:
    fused = webui.txt2img(f"a cat {CONTENT}{STYLE}{winner}", settings)
    assert fused.pixels == webui.txt2img(f"a cat {winner}{winner}").pixels
    assert fused.pixels != webui.txt2img("a cat ").pixels


def test_a_hires_pass_of_fewer_steps_has_its_own_windows(webui: WebUI) -> None:
    """Of 6 steps and of 2: a window from the third step on is never reached in the second pass alone."""
    short = {**HIRES, "hr_second_pass_steps": 2}
    late = windowed(NAMES[1], "stop=0:hr_start=3")
    for settings, beside in ((None, ""), (constant(1, 1), CONTENT)):
        never = webui.txt2img(f"a cat {beside}{late}", settings, **short)
        assert never.pixels == webui.txt2img(f"a cat {beside}", **short).pixels
    reached = webui.txt2img(f"a cat {CONTENT}{late}", constant(1, 1), **HIRES)
    assert reached.pixels != webui.txt2img(f"a cat {CONTENT}", **HIRES).pixels


def test_who_asks_for_a_lora_that_is_not_there_disturbs_no_job(webui: WebUI) -> None:
    """K-LoRA looks once more for what it does not find, and the host's tables stay whole meanwhile."""
    pair, hires = f"a cat {CONTENT}{STYLE}", {**HIRES, "hr_prompt": f"a dog {CONTENT}{STYLE}"}
    alone = webui.txt2img(pair, {}, steps=20, **hires)
    asked = {"content": "nowhere", "style": NAMES[1], "steps": 4}
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(webui.txt2img, pair, {}, steps=20, **hires)
        refusals = 0
        while not job.done():
            with pytest.raises(RefusedError, match="there is no LoRA 'nowhere'"):
                webui.call("/klora/v1/plan", asked)
            refusals += 1
    assert refusals > 2
    assert job.result().pixels == alone.pixels


#: Which layers of a file are written, by its name.
PARTS: dict[str, Callable[[str], bool]] = {
    "attention": lambda name: name.startswith("lora_unet_") and "_attn" in name,
    "unet": lambda name: name.startswith("lora_unet_"),
    "whole": lambda name: True,
}


@pytest.fixture
def in_two_dialects(webui: WebUI, lora_folder: Path) -> Iterator[None]:
    """The pair with a part for the text encoder, of each kind in kohya's dialect and in diffusers'."""
    checkpoint, written = lora_folder.parent / "sd1-a.safetensors", []
    for name in NAMES:
        tensors = load_file(lora_folder / f"{name}.safetensors") | _for_texts(checkpoint, name)
        for kind, has in PARTS.items():
            whole, split = (lora_folder / f"{name}-{kind}{more}.safetensors" for more in ("", "-split"))
            save_file({key: one for key, one in tensors.items() if has(key)}, whole)
            convert(whole, split, "diffusers", overwrite=True)
            written += [whole, split]
    webui.call("/sdapi/v1/refresh-loras", {})
    yield
    for path in written:
        path.unlink()
    webui.call("/sdapi/v1/refresh-loras", {})


def _for_texts(checkpoint: Path, name: str) -> dict[str, Tensor]:
    rank, _, seed = ROLES[name.partition("-")[0]]
    tensors = dict[str, Tensor]()
    with safe_open(str(checkpoint), "pt") as opened:
        for key in opened.keys():  # noqa: SIM118 - not a dict
            if key.startswith(_LAYERS) and key.endswith("_proj.weight"):
                layer = key.removeprefix("cond_stage_model.transformer.").removesuffix(".weight")
                stem, shape = "lora_te_" + layer.replace(".", "_"), opened.get_slice(key).get_shape()
                tensors.update(seeded_layer(stem, shape, rank, seed))
    return tensors


def _pair(kind: str, content: float, style: float) -> str:
    return f"<lora:{NAMES[0]}-{kind}:{content}><lora:{NAMES[1]}-{kind}:{style}>"


@pytest.mark.usefixtures("in_two_dialects")
@pytest.mark.parametrize("kind", PARTS)
def test_a_pair_in_a_dialect_that_the_host_does_not_read_or_reads_in_part(webui: WebUI, kind: str) -> None:
    """Some hosts know diffusers' names of the text encoder, or of what is no attention, and no others."""
    before = webui.txt2img("a cat ")
    for settings in ({**PUBLISHED, "keep": 0.5}, constant(0.6, 0.9)):
        made, expected = (
            webui.txt2img(f"a cat {_pair(name, 1, 1)}", settings) for name in (f"{kind}-split", kind)
        )
        assert made.pixels == expected.pixels != before.pixels
    assert webui.txt2img("a cat ").pixels == before.pixels


@pytest.mark.usefixtures("in_two_dialects")
def test_a_hires_prompt_is_encoded_with_its_own_loras(webui: WebUI) -> None:
    """Files that we read and the host does not, against those that it reads by itself."""
    before = webui.txt2img("a cat ")
    for settings in ({**PUBLISHED, "keep": 0.5}, constant(1, 1)):
        made, expected = (
            webui.txt2img(
                f"a cat {_pair(kind, 1, 0.8)}", settings, hr_prompt=f"a dog {_pair(kind, 0.2, 0.4)}", **HIRES
            )
            for kind in ("whole-split", "whole")
        )
        assert made.pixels == expected.pixels
        assert made.pixels != webui.txt2img(f"a cat {_pair('whole', 1, 0.8)}", settings, **HIRES).pixels
    assert webui.txt2img("a cat ").pixels == before.pixels
