"""The rule of the paper, for tests that mean it and not whatever the defaults are."""

from __future__ import annotations

from typing import Any, Final

from klora.presets import AS_PUBLISHED
from klora.settings import Settings

#: Rule, balance, what the loser keeps and the negative side, as published; all others are at their defaults.
PUBLISHED: Final[dict[str, Any]] = {
    name: AS_PUBLISHED.values[name] for name in ("rule", "balance", "keep", "guidance")
}

#: The same as options of the command line. Options that follow them win.
PUBLISHED_OPTIONS: Final = [
    word for name, value in PUBLISHED.items() for word in ("--" + name.replace("_", "-"), str(value))
]


def published(**changes: object) -> Settings:
    """Settings as published but for ``changes``."""
    return Settings(**{**PUBLISHED, **changes})
