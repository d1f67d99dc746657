"""Shares, guidance and windows on the real Forge."""

from __future__ import annotations

from tests.hosts.family_share_cases import *  # noqa: F403 - collected here, with this module's fixtures
from tests.hosts.prompt_cases import *  # noqa: F403
from tests.hosts.share_cases import *  # noqa: F403
from tests.hosts.test_forge import _plain_options, webui  # noqa: F401
