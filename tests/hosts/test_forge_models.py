"""Forge's storages, its LoRAs on the fly, GGUF, and Flux."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.hosts.family import FamilyWebUI
from tests.hosts.test_a1111 import CONTENT, CONTENT_WINS, PAIR, STYLE, STYLE_WINS
from tests.hosts.test_forge import _plain_options, webui  # noqa: F401
from tests.hosts.test_neo_models import (  # noqa: F401 - collected here too, with this module's fixtures
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


@pytest.mark.parametrize(("kind", "share"), [("Q8_0", 0.02), ("Q4_0", 0.2)])
def test_gguf_merged_by_the_host_differs_by_its_rounding(
    webui: FamilyWebUI,  # noqa: F811
    gguf: Callable[[str, str], None],  # noqa: F811
    kind: str,
    share: float,
) -> None:
    """The host rounds what it has merged to GGUF's blocks again; K-LoRA's winner is not rounded."""
    content, style = "<lora:content-flux:1>", "<lora:style-flux:1>"
    for settings, winner, loser in ((CONTENT_WINS, content, style), (STYLE_WINS, style, content)):
        pictures = []
        for prompt, klora in ((content + style, settings), (winner, None), (loser, None)):
            gguf(kind, "Automatic")
            pictures.append(webui.txt2img(f"a cat {prompt}", klora, **FLUX))
        fused, only, other = pictures
        assert fused.mean_distance(only) <= share * only.mean_distance(other)


def test_nf4_merged_by_the_host_differs_by_its_rounding(
    webui: FamilyWebUI,  # noqa: F811
    stored: Callable[[str], None],  # noqa: F811
    four_bits: str,  # noqa: F811
) -> None:
    """As with GGUF: what the host has merged it packs again, K-LoRA's winner is applied on the fly."""
    stored(four_bits)
    base, added = webui.txt2img("a cat "), webui.txt2img(PAIR)
    only = {winner: webui.txt2img(f"a cat {winner}") for winner in (CONTENT, STYLE)}
    for settings, winner in ((CONTENT_WINS, CONTENT), (STYLE_WINS, STYLE)):
        fused = webui.txt2img(PAIR, settings)
        print(f"{fused.mean_distance(only[winner]):.2f} of {only[CONTENT].mean_distance(only[STYLE]):.2f}")
        assert fused.mean_distance(only[winner]) <= 0.2 * only[CONTENT].mean_distance(only[STYLE])
    assert webui.txt2img(PAIR).pixels == added.pixels
    assert webui.txt2img("a cat ").pixels == base.pixels
