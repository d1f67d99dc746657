"""What a rule and a transform have in common: a name by which a setting chooses it, and own settings."""

from __future__ import annotations

from abc import ABC
from typing import ClassVar

from klora.options import Setting, Values


class Part(ABC):
    """A part of the engine that can be chosen. ``name`` stands in saved pictures and presets: it is never
    changed.

    ``settings`` are shown, written and asked for only where the part is chosen.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    source: ClassVar[str]
    settings: ClassVar[tuple[Setting, ...]] = ()
    is_for_lab_only: ClassVar[bool] = False

    def check(self, values: Values) -> None:  # noqa: B027 - most have nothing to check
        """Raise `SettingsError` if values do not go together."""
