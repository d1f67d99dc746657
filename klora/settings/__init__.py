"""Every setting of a job: typed, with its default, bounds, label and help."""

from klora.options import Setting, SettingValue, TopK, Values
from klora.settings.settings import (
    DEFAULT_PRESET,
    FIRST_IN_PROMPT,
    NO_PRESET,
    SECOND_IN_PROMPT,
    Settings,
    rule_settings,
    shown,
)

__all__ = [
    "DEFAULT_PRESET",
    "FIRST_IN_PROMPT",
    "NO_PRESET",
    "SECOND_IN_PROMPT",
    "Setting",
    "SettingValue",
    "Settings",
    "TopK",
    "Values",
    "rule_settings",
    "shown",
]
