"""Models that do not fit on the device, and Forge's own Never OOM, as far as a CPU lets the host."""

from __future__ import annotations

from tests.hosts.family import FamilyWebUI
from tests.hosts.test_forge import _plain_options, webui  # noqa: F401
from tests.hosts.test_neo_memory import fuses_beside, test_little_memory  # noqa: F401


def test_never_oom(webui: FamilyWebUI) -> None:  # noqa: F811
    fuses_beside(webui, "Never OOM Integrated", [True, False])  # its tiled VAE cannot do so small a picture
