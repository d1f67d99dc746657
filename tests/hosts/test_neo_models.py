"""Forge Neo's storages, its LoRAs on the fly, and Flux."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.hosts.family import FamilyWebUI
from tests.hosts.server import RefusedError
from tests.hosts.test_a1111 import CONTENT, CONTENT_WINS, PAIR, PASSES, STYLE, STYLE_WINS
from tests.hosts.test_neo import _plain_options, webui  # noqa: F401

#: Enough for GGUF, whose every step unpacks all weights: several seconds on a processor.
FEW_STEPS = 2

#: What Flux wants of a request; with the schedule Automatic the host's own picture is black.
FLUX: dict[str, Any] = {"cfg_scale": 1, "sampler_name": "Euler", "scheduler": "Simple", "steps": 4}


@pytest.fixture
def stored(webui: FamilyWebUI) -> Iterator[Callable[[str], None]]:  # noqa: F811
    """Chooses 'Diffusion in Low Bits'; the host looks at it when the checkpoint changes."""

    def choose(storage: str) -> None:
        webui.options(forge_unet_storage_dtype=storage)
        for checkpoint in ("sd1-b", "sd1-a"):
            webui.options(sd_model_checkpoint=f"{checkpoint}.safetensors")

    yield choose
    choose("Automatic")


def fuses_in_storage(webui: FamilyWebUI, plain: tuple[str, ...]) -> None:  # noqa: F811
    """The table's core with a storage that shows: without it the pixels of the pair were ``plain``."""
    base, added = webui.txt2img("a cat "), webui.txt2img(PAIR)
    assert added.pixels != plain  # the storage is in use
    for request in ({}, PASSES["hires"], PASSES["second order"]):
        for settings, winner in ((CONTENT_WINS, CONTENT), (STYLE_WINS, STYLE)):
            only = webui.txt2img(f"a cat {winner}", **request)
            assert webui.txt2img(PAIR, settings, **request).pixels == only.pixels
    assert webui.txt2img(PAIR, {}).pixels not in (base.pixels, added.pixels)
    assert webui.txt2img(PAIR).pixels == added.pixels
    assert webui.txt2img("a cat ").pixels == base.pixels


@pytest.mark.parametrize("storage", ["float8-e4m3fn", "float8-e5m2"])
@pytest.mark.parametrize("way", ["", " (fp16 LoRA)"], ids=["merged", "on the fly"])
def test_fp8(webui: FamilyWebUI, stored: Callable[[str], None], storage: str, way: str) -> None:  # noqa: F811
    plain = webui.txt2img(PAIR)
    stored(storage + way)
    fuses_in_storage(webui, plain.pixels)


@pytest.fixture
def four_bits(webui: FamilyWebUI) -> str:  # noqa: F811
    """How the host calls nf4, if it has bitsandbytes."""
    has_kernels = "import importlib.util, sys; sys.exit(not importlib.util.find_spec('bitsandbytes'))"
    if subprocess.run([webui.family.python, "-c", has_kernels], check=False).returncode:
        pytest.skip("install bitsandbytes into the host's Python to test nf4")
    return "bnb-nf4"


def test_nf4_on_the_fly(webui: FamilyWebUI, stored: Callable[[str], None], four_bits: str) -> None:  # noqa: F811
    plain = webui.txt2img(PAIR)
    stored(four_bits + " (fp16 LoRA)")
    fuses_in_storage(webui, plain.pixels)


def test_nf4_without_loras_on_the_fly(
    webui: FamilyWebUI,  # noqa: F811
    stored: Callable[[str], None],
    four_bits: str,
) -> None:
    """There the host itself fails: it merges as if the blocks were numbers. K-LoRA applies on the fly."""
    stored(four_bits + " (fp16 LoRA)")
    on_the_fly = {winner: webui.txt2img(f"a cat {winner}").pixels for winner in (CONTENT, STYLE)}
    stored(four_bits)
    base = webui.txt2img("a cat ")
    for settings, winner in ((CONTENT_WINS, CONTENT), (STYLE_WINS, STYLE)):
        assert webui.txt2img(PAIR, settings).pixels == on_the_fly[winner]
    assert webui.txt2img("a cat ").pixels == base.pixels
    with pytest.raises(RefusedError, match="quant_state"):
        webui.txt2img(PAIR)


def test_flux_in_nf4_on_the_fly(webui: FamilyWebUI, four_bits: str) -> None:  # noqa: F811
    flux = webui.checkpoint("FLUX")
    webui.options(forge_unet_storage_dtype=four_bits + " (fp16 LoRA)")
    try:
        webui.options(sd_model_checkpoint="sd1-a.safetensors")
        webui.options(sd_model_checkpoint=flux)
        for style in ("style-flux", "style-flux-split"):
            fuses_flux(webui, "content-flux", style)
    finally:
        webui.options(forge_unet_storage_dtype="Automatic")
        webui.options(sd_model_checkpoint="sd1-a.safetensors")


def test_on_the_fly_and_merged_differ_by_the_storage_s_rounding(
    webui: FamilyWebUI,  # noqa: F811
    stored: Callable[[str], None],
) -> None:
    stored("float8-e4m3fn")
    merged = webui.txt2img(PAIR, CONTENT_WINS)
    stored("float8-e4m3fn (fp16 LoRA)")
    assert webui.txt2img(PAIR, CONTENT_WINS).pixels != merged.pixels


def fuses_flux(webui: FamilyWebUI, content: str, style: str, steps: int = 4) -> None:  # noqa: F811
    """Two LoRAs, by name, win and lose on the loaded Flux checkpoint, and leave no trace."""
    request = {**FLUX, "steps": steps}
    content, style = f"<lora:{content}:1>", f"<lora:{style}:1>"
    pair = f"a cat {content}{style}"
    base, added = webui.txt2img("a cat ", **request), webui.txt2img(pair, **request)
    for settings, winner in ((CONTENT_WINS, content), (STYLE_WINS, style)):
        only = webui.txt2img(f"a cat {winner}", **request)
        assert webui.txt2img(pair, settings, **request).pixels == only.pixels
        assert only.pixels not in (base.pixels, added.pixels)
    for clock in ("step", "noise"):
        fused = webui.txt2img(pair, {"clock": clock}, **request)
        assert fused.pixels not in (base.pixels, added.pixels)
    assert webui.txt2img(pair, **request).pixels == added.pixels
    assert webui.txt2img("a cat ", **request).pixels == base.pixels


@pytest.mark.parametrize("content", ["content-flux", "content-flux-split"])
@pytest.mark.parametrize("style", ["style-flux", "style-flux-split"])
def test_flux(webui: FamilyWebUI, content: str, style: str) -> None:  # noqa: F811
    webui.options(sd_model_checkpoint=webui.checkpoint("FLUX"))
    fuses_flux(webui, content, style)


@pytest.mark.parametrize("dialect", ["xlabs", "bare"])
def test_flux_in_dialects_that_the_host_cannot_read(webui: FamilyWebUI, dialect: str) -> None:  # noqa: F811
    webui.options(sd_model_checkpoint=webui.checkpoint("FLUX"))
    pairs = [f"a cat <lora:content-flux-{one}:1><lora:style-flux-{one}:1>" for one in (dialect, "double")]
    for settings in (CONTENT_WINS, STYLE_WINS, {}):
        # The scale is multiplied into the factors, so the picture may differ by a rounding.
        fused, plain = (webui.txt2img(pair, settings, **FLUX) for pair in pairs)
        assert fused.distance(plain) <= 2


@pytest.fixture
def gguf(webui: FamilyWebUI) -> Iterator[Callable[[str, str], None]]:  # noqa: F811
    """Loads the Flux checkpoint in one of GGUF's formats, with LoRAs in one of the host's ways."""
    webui.checkpoint("FLUX")
    parts = sorted(str(part) for part in (webui.models / "modules").glob("*.safetensors"))
    assert len(parts) == 3

    def load(kind: str, way: str) -> None:
        webui.options(forge_unet_storage_dtype=way, forge_additional_modules=parts)
        # Forge writes what it merges into GGUF's blocks, of which its backup on a CPU is a part.
        webui.options(sd_model_checkpoint="sd1-a.safetensors")
        webui.options(sd_model_checkpoint=f"flux-{kind}.gguf")

    yield load
    webui.options(forge_unet_storage_dtype="Automatic", forge_additional_modules=[])


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_gguf_on_the_fly(
    webui: FamilyWebUI,  # noqa: F811
    gguf: Callable[[str, str], None],
    kind: str,
) -> None:
    gguf(kind, "Automatic (fp16 LoRA)")
    fuses_flux(webui, "content-flux", "style-flux-split", FEW_STEPS)
    if kind == "Q8_0":
        fuses_flux(webui, "content-flux", "style-flux", FEW_STEPS)


def test_gguf_into_which_the_host_does_not_merge(
    webui: FamilyWebUI,  # noqa: F811
    gguf: Callable[[str, str], None],
) -> None:
    gguf("Q8_0", "Automatic")  # other hosts merge, and round to the blocks again; this one does as on the fly
    fuses_flux(webui, "content-flux", "style-flux", FEW_STEPS)


def test_lora_for_another_base_model_is_refused(webui: FamilyWebUI) -> None:  # noqa: F811
    webui.options(sd_model_checkpoint=webui.checkpoint("FLUX"))
    with pytest.raises(RefusedError, match=r"made for SD1, but the loaded .* Flux"):
        webui.txt2img(PAIR, {}, **FLUX)
