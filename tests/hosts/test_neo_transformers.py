"""Forge Neo's newer models: transformers for which the engine has no names of its own."""

from __future__ import annotations

import pytest

from tests.hosts.family import FamilyWebUI
from tests.hosts.test_neo import _plain_options, webui  # noqa: F401
from tests.hosts.transformer_cases import fuses, load


#: Checkpoint -> the dialects of LoRAs for it that the host reads.
DIALECTS = {"lumina": ("", "-native"), "z-image": ("", "-native", "-split")}


@pytest.mark.parametrize(("kind", "dialect"), [(kind, one) for kind in DIALECTS for one in DIALECTS[kind]])
def test_a_pair_is_fused(webui: FamilyWebUI, kind: str, dialect: str) -> None:  # noqa: F811
    load(webui, kind)
    fuses(webui, f"content-{kind}{dialect}", f"style-{kind}{dialect}")


def test_a_pair_in_two_dialects_is_fused(webui: FamilyWebUI) -> None:  # noqa: F811
    load(webui, "z-image")
    fuses(webui, "content-z-image-split", "style-z-image")
    fuses(webui, "content-z-image", "style-z-image-split")
