"""Forge's storages, its LoRAs on the fly, GGUF, and Flux."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.hosts.family import FamilyWebUI
from tests.hosts.test_a1111 import CONTENT, CONTENT_WINS, PAIR, STYLE, STYLE_WINS
from tests.hosts.test_forge import _plain_options, webui  # noqa: F401
from tests.hosts.test_neo_models import (  # noqa: F401 - collected here too, with this module's fixtures
    FEW_STEPS,
    FLUX,
    four_bits,
    gguf,
    stored,
    test_flux,
    test_flux_in_dialects_that_the_host_cannot_read,
    test_flux_in_nf4_on_the_fly,
    test_fp8,
    test_gguf_on_the_fly,
    test_lora_for_another_base_model_is_refused,
    test_nf4_on_the_fly,
    test_on_the_fly_and_merged_differ_by_the_storage_s_rounding,
)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_gguf_merged_by_the_host_differs_by_its_rounding(
    webui: FamilyWebUI,  # noqa: F811
    gguf: Callable[[str, str], None],  # noqa: F811
    kind: str,
) -> None:
    """The host rounds what it has merged to GGUF's blocks again; K-LoRA's winner is applied on the fly."""
    content, style = "<lora:content-flux:1>", "<lora:style-flux:1>"
    for settings, winner in ((CONTENT_WINS, content), (STYLE_WINS, style)):
        pictures = []
        for prompt, klora, way in (
            (content + style, settings, "Automatic"),
            (winner, None, "Automatic (fp16 LoRA)"),
            (winner, None, "Automatic"),
        ):
            gguf(kind, way)
            pictures.append(webui.txt2img(f"a cat {prompt}", klora, **{**FLUX, "steps": FEW_STEPS}))
        fused, on_the_fly, merged = pictures
        assert fused.pixels == on_the_fly.pixels != merged.pixels


def test_nf4_merged_by_the_host_differs_by_its_rounding(
    webui: FamilyWebUI,  # noqa: F811
    stored: Callable[[str], None],  # noqa: F811
    four_bits: str,  # noqa: F811
) -> None:
    """As with GGUF: what the host has merged it packs again, K-LoRA's winner is applied on the fly."""
    stored(four_bits + " (fp16 LoRA)")
    on_the_fly = {winner: webui.txt2img(f"a cat {winner}").pixels for winner in (CONTENT, STYLE)}
    stored(four_bits)
    base, added = webui.txt2img("a cat "), webui.txt2img(PAIR)
    merged = {winner: webui.txt2img(f"a cat {winner}") for winner in (CONTENT, STYLE)}
    for settings, winner in ((CONTENT_WINS, CONTENT), (STYLE_WINS, STYLE)):
        fused = webui.txt2img(PAIR, settings)
        assert fused.pixels == on_the_fly[winner] != merged[winner].pixels
    assert webui.txt2img(PAIR).pixels == added.pixels
    assert webui.txt2img("a cat ").pixels == base.pixels
