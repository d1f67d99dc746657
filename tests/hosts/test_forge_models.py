"""Forge's storages, its LoRAs on the fly, GGUF, and Flux."""

from __future__ import annotations

import pytest

from tests.hosts.family import FamilyWebUI
from tests.hosts.test_forge import _plain_options, webui  # noqa: F401
from tests.hosts.test_neo_models import (  # noqa: F401 - collected here too, with this module's fixtures
    fuses_flux,
    stored,
    test_flux,
    test_flux_in_dialects_that_the_host_cannot_read,
    test_fp8,
    test_lora_for_another_base_model_is_refused,
    test_on_the_fly_and_merged_differ_by_the_storage_s_rounding,
)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("way", ["Automatic", "Automatic (fp16 LoRA)"], ids=["as stored", "on the fly"])
def test_gguf(webui: FamilyWebUI, kind: str, way: str) -> None:  # noqa: F811
    webui.checkpoint("FLUX")
    parts = sorted(str(part) for part in (webui.models / "modules").glob("*.safetensors"))
    assert len(parts) == 3
    webui.options(forge_unet_storage_dtype=way, forge_additional_modules=parts)
    webui.options(sd_model_checkpoint=f"flux-{kind}.gguf")
    try:
        for content, style in (("content-flux", "style-flux"), ("content-flux", "style-flux-split")):
            fuses_flux(webui, content, style)
    finally:
        webui.options(forge_unet_storage_dtype="Automatic", forge_additional_modules=[])
