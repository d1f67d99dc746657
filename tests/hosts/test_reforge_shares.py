"""Shares, guidance and windows on the real reForge, which has neither these storages nor Flux."""

from __future__ import annotations

from tests.hosts.family_share_cases import (  # noqa: F401 - collected here, with this module's fixtures
    lora_folder,
    test_a_refiner_gets_shares_guidance_and_windows,
    test_sdxl_by_shares,
    test_the_unconditional_rows_of_tiles,
)
from tests.hosts.prompt_cases import *  # noqa: F403
from tests.hosts.share_cases import *  # noqa: F403
from tests.hosts.test_reforge import _plain_options, webui  # noqa: F401
