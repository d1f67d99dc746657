"""Forge's SD3, and the clock by noise on a flow model."""

from __future__ import annotations

from tests.hosts.family import FamilyWebUI
from tests.hosts.test_forge import _plain_options, webui  # noqa: F401
from tests.hosts.transformer_cases import flips_follow_sigma, fuses, load


def test_sd3(webui: FamilyWebUI) -> None:  # noqa: F811
    load(webui, "sd3")
    fuses(webui, "content-sd3", "style-sd3")


def test_the_noise_clock_of_a_flow_model_is_its_sigma(webui: FamilyWebUI) -> None:  # noqa: F811
    load(webui, "sd3")
    blocks = [f"joint_blocks.{number}" for number in range(3)]
    parts = [f"{block}.{part}_block.attn.proj.weight" for block in blocks for part in ("context", "x")]
    flips_follow_sigma(webui, "content-sd3", "style-sd3", parts)
