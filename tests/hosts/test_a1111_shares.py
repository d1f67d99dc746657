"""Shares, guidance and windows on the real AUTOMATIC1111."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hosts.prompt_cases import *  # noqa: F403
from tests.hosts.server import WebUI
from tests.hosts.share_cases import *  # noqa: F403 - collected here, with this module's fixtures
from tests.hosts.share_cases import HIRES, PAIR, check_guidance, constant, denoised
from tests.hosts.test_a1111 import _plain_options  # noqa: F401 - an automatic fixture
from tests.published import PUBLISHED


@pytest.fixture
def lora_folder(models: Path) -> Path:
    return models / "loras"


@pytest.mark.parametrize("option", ["lora_functional", "fp8_storage"])
def test_shares_in_other_modes_of_the_host(webui: WebUI, option: str) -> None:
    webui.options(**{option: "Enable" if option == "fp8_storage" else True})
    expected = webui.txt2img("a cat <lora:content-sd1-a:0.6><lora:style-sd1-a:0.9>")
    fused = webui.txt2img(PAIR, constant(0.6, 0.9))
    assert fused.pixels == expected.pixels
    late = webui.txt2img("a cat <lora:third-sd1-a:1:start=0.5>")
    assert late.pixels not in (
        webui.txt2img("a cat ").pixels,
        webui.txt2img("a cat <lora:third-sd1-a:1>").pixels,
    )


@pytest.mark.parametrize(
    ("options", "request_"),
    [
        ({"batch_cond_uncond": False}, {"batch_size": 2}),
        ({"lora_functional": True}, {}),
        ({"pad_cond_uncond": True}, {"negative_prompt": "bad, " * 80}),
    ],
)
def test_the_unconditional_rows_under_options(
    webui: WebUI, options: dict[str, Any], request_: dict[str, Any]
) -> None:
    before = {name: webui.call("/sdapi/v1/options")[name] for name in options}
    webui.options(**options)
    try:
        check_guidance(webui, "none", **request_)
    finally:
        webui.options(**before)


def test_the_rows_of_prompts_joined_by_and(webui: WebUI) -> None:
    tags, scale = PAIR.removeprefix("a cat "), 7.0
    parts = [denoised(webui, f"{part} {tags}", cfg_scale=1) for part in ("a cat", "a dog")]
    other = denoised(webui, "ugly", cfg_scale=1)
    fused = denoised(
        webui,
        f"a cat AND a dog {tags}",
        constant(1, 1, guidance="none"),
        cfg_scale=scale,
        negative_prompt="ugly",
    )
    expected = other + scale * sum(part - other for part in parts)
    assert np.abs(fused - expected).max() <= 2e-4 * np.abs(expected).max()


def test_sdxl(webui: WebUI) -> None:
    webui.options(sd_model_checkpoint="sdxl.safetensors")
    pair = "a cat <lora:content-sdxl:1><lora:style-sdxl:1>"
    expected = webui.txt2img("a cat <lora:content-sdxl:0.6><lora:style-sdxl:0.9>")
    assert webui.txt2img(pair, constant(0.6, 0.9)).pixels == expected.pixels
    told = {
        guidance: webui.txt2img(pair, {**PUBLISHED, "guidance": guidance}).pixels
        for guidance in ("both", "none")
    }
    assert told["both"] != told["none"]


def test_the_negative_side_with_several_checkpoints_in_memory(webui: WebUI) -> None:
    """LoRAs that were read for a checkpoint which waits in memory, and a refiner that waits there.

    Ground truth of the first is the host with one checkpoint alone. A refiner's picture differs there without
    K-LoRA too, so it takes over at the first step, which is looked at.
    """
    names = ("sd1-a.safetensors", "sd1-b.safetensors")
    settings = constant(1, 1, guidance="none")
    jobs: list[dict[str, Any]] = [{}, {**HIRES, "hr_checkpoint_name": names[1]}]
    expected = [webui.txt2img(PAIR, settings, **job).pixels for job in jobs]
    webui.options(sd_checkpoints_limit=2)
    try:
        for _ in range(2):  # where the host has to load a model it empties its list of LoRAs
            for name in reversed(names):
                webui.options(sd_model_checkpoint=name)
                webui.txt2img(PAIR)
            found = [webui.txt2img(PAIR, settings, **job).pixels for job in jobs]
        assert found == expected
        assert found[0] != webui.txt2img(PAIR).pixels
        check_guidance(webui, "none", refiner_checkpoint=names[1], refiner_switch_at=0.0)
    finally:
        webui.options(sd_checkpoints_limit=1)
