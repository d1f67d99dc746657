"""Shares and guidance in the storages and models of the Forge family: cases that its modules collect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.family import FamilyWebUI
from tests.hosts.server import Answer
from tests.hosts.share_cases import PAIR, check_guidance, check_tiles, constant
from tests.hosts.test_neo_models import FLUX, gguf, stored  # noqa: F401 - fixtures
from tests.published import PUBLISHED

WEAKER = "a cat <lora:content-sd1-a:0.6><lora:style-sd1-a:0.9>"
REFINED: dict[str, Any] = {"refiner_checkpoint": "sd1-b.safetensors", "refiner_switch_at": 0.5}

#: What a branch's factors and a merged weight may differ by in a storage of 8 bits: one is rounded, one not.
ROUNDING = 0.1


@pytest.fixture
def lora_folder(webui: FamilyWebUI) -> Path:
    """Where the WebUI's LoRAs lie."""
    return webui.models / "loras"


def both_come_back(webui: FamilyWebUI, before: tuple[Answer, Answer], pair: str, **request: Any) -> None:
    """The host's own pictures are what they were."""
    after = webui.txt2img("a cat ", **request), webui.txt2img(pair, **request)
    assert [one.pixels for one in after] == [one.pixels for one in before]


@pytest.mark.parametrize("storage", ["float8-e4m3fn", "float8-e4m3fn (fp16 LoRA)", "Automatic (fp16 LoRA)"])
def test_shares_and_guidance_in_a_storage(
    webui: FamilyWebUI,
    stored: Callable[[str], None],  # noqa: F811
    storage: str,
) -> None:
    stored(storage)
    before = webui.txt2img("a cat "), webui.txt2img(PAIR)
    assert webui.txt2img(PAIR, constant(0.6, 0.9)).pixels == webui.txt2img(WEAKER).pixels
    assert webui.txt2img(PAIR, constant(1, 1)).pixels == before[1].pixels
    told = [
        webui.txt2img(PAIR, {**PUBLISHED, "guidance": guidance}).pixels
        for guidance in ("both", "content", "none")
    ]
    assert len(set(told)) == 3
    third, half = "<lora:third-sd1-a:1:w=0:0.5,1:0.5>", "<lora:third-sd1-a:0.5>"
    assert webui.txt2img(PAIR + third).pixels == webui.txt2img(PAIR + half).pixels
    both_come_back(webui, before, PAIR)


@pytest.mark.parametrize("storage", ["Automatic (fp16 LoRA)", "float8-e4m3fn (fp16 LoRA)"])
def test_the_unconditional_rows_beside_loras_on_the_fly(
    webui: FamilyWebUI,
    stored: Callable[[str], None],  # noqa: F811
    storage: str,
) -> None:
    stored(storage)
    check_guidance(webui, "content", tolerance=2e-4 if storage.startswith("Auto") else ROUNDING)


@pytest.mark.parametrize("method", ["MultiDiffusion", "Mixture of Diffusers"])
def test_the_unconditional_rows_of_tiles(webui: FamilyWebUI, method: str) -> None:
    """Tiles of half the picture that lie half over each other."""
    name, size = "MultiDiffusion Integrated", {"width": 128, "height": 128}
    request: dict[str, Any] = {**size, "steps": 4, "denoising_strength": 0.75}
    request["init"] = webui.txt2img("a dog", **size)

    def tiled(settings: dict[str, Any] | None, together: int, prompt: str = PAIR) -> Answer:
        tiles = {name: {"args": [True, method, 64, 64, 32, together]}}
        return webui.img2img(prompt, settings, alwayson_scripts=tiles, **request)

    check_tiles(tiled)
    assert tiled(None, 4, "a cat ").pixels != webui.img2img("a cat ", **request).pixels
    if name.lower() in webui.call("/sdapi/v1/scripts")["txt2img"]:  # Forge Neo has it in img2img alone
        tiles = {name: {"args": [True, method, 64, 64, 32, 4]}}
        check_guidance(webui, "none", alwayson_scripts=tiles, batch_size=2, **size)


def test_sdxl_by_shares(webui: FamilyWebUI) -> None:
    webui.options(sd_model_checkpoint=webui.checkpoint("SDXL"))
    pair = "a cat <lora:content-sdxl:1><lora:style-sdxl:1>"
    before = webui.txt2img("a cat "), webui.txt2img(pair)
    weaker = webui.txt2img("a cat <lora:content-sdxl:0.6><lora:style-sdxl:0.9>")
    assert webui.txt2img(pair, constant(0.6, 0.9)).pixels == weaker.pixels
    told = {
        guidance: webui.txt2img(pair, {**PUBLISHED, "guidance": guidance}).pixels
        for guidance in ("both", "none")
    }
    assert told["both"] != told["none"]
    both_come_back(webui, before, pair)


def test_a_refiner_gets_shares_guidance_and_windows(webui: FamilyWebUI) -> None:
    before = webui.txt2img("a cat "), webui.txt2img(PAIR)
    steps = {"refiner_use_steps": True}
    has_option = "refiner_use_steps" in webui.call("/sdapi/v1/options")
    if has_option:
        webui.options(**steps)
    try:
        weaker, added = webui.txt2img(WEAKER, **REFINED), webui.txt2img(PAIR, **REFINED)
        assert webui.txt2img(PAIR, constant(0.6, 0.9), **REFINED).pixels == weaker.pixels
        told = [
            webui.txt2img(PAIR, constant(1, 1, guidance=guidance), **REFINED).pixels
            for guidance in ("both", "none", "content")
        ]
        assert told[0] == added.pixels
        assert len(set(told)) == 3
        third, half = "<lora:third-sd1-a:1:w=0:0.5,1:0.5>", "<lora:third-sd1-a:0.5>"
        assert webui.txt2img(PAIR + third, **REFINED).pixels == webui.txt2img(PAIR + half, **REFINED).pixels
    finally:
        if has_option:
            webui.options(refiner_use_steps=False)
    both_come_back(webui, before, PAIR)


def flux_by_shares(webui: FamilyWebUI, style: str, *, is_exact: bool = True) -> None:
    """Shares and a window on the loaded Flux checkpoint."""
    pair = f"a cat <lora:content-flux:1><lora:{style}:1>"
    before = webui.txt2img("a cat ", **FLUX), webui.txt2img(pair, **FLUX)
    weaker = webui.txt2img(f"a cat <lora:content-flux:0.6><lora:{style}:0.9>", **FLUX)
    fused = webui.txt2img(pair, constant(0.6, 0.9), **FLUX)
    assert fused.pixels == weaker.pixels if is_exact else fused.distance(weaker) <= 2
    assert fused.pixels != before[1].pixels
    halved = webui.txt2img(f"a cat <lora:{style}:1:w=0:0.5,1:0.5>", **FLUX)
    half = webui.txt2img(f"a cat <lora:{style}:0.5>", **FLUX)
    assert halved.pixels == half.pixels if is_exact else halved.distance(half) <= 2
    kept = [webui.txt2img(pair, {**PUBLISHED, "keep": keep}, **FLUX).pixels for keep in (0, 0.5, 1)]
    assert len(set(kept)) == 3
    # The default on a distilled model: there is no negative side, and nothing to say of it.
    default = webui.txt2img(pair, {}, **FLUX)
    assert default.pixels == webui.txt2img(pair, {"guidance": "both"}, **FLUX).pixels != before[1].pixels
    assert "K-LoRA note" not in default.infotexts[0]
    both_come_back(webui, before, pair, **FLUX)


@pytest.mark.parametrize("style", ["style-flux", "style-flux-split"])
def test_flux_by_shares(webui: FamilyWebUI, style: str) -> None:
    webui.options(sd_model_checkpoint=webui.checkpoint("FLUX"))
    flux_by_shares(webui, style)


def test_gguf_by_shares(webui: FamilyWebUI, gguf: Callable[[str, str], None]) -> None:  # noqa: F811
    gguf("Q8_0", "Automatic (fp16 LoRA)")
    flux_by_shares(webui, "style-flux-split")
