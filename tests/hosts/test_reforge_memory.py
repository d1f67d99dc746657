"""Models that do not fit on the device, on reForge."""

from __future__ import annotations

from tests.hosts.test_neo_memory import test_little_memory  # noqa: F401
from tests.hosts.test_reforge import _plain_options, webui  # noqa: F401
