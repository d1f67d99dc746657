"""Every setting, declared once. UI, API, infotext, XYZ axes and command line are loops over these."""

from klora.settings.declaration import Setting, SettingKind
from klora.settings.settings import FIRST_IN_PROMPT, SECOND_IN_PROMPT, Settings
from klora.settings.top_k import TopK

__all__ = ["FIRST_IN_PROMPT", "SECOND_IN_PROMPT", "Setting", "SettingKind", "Settings", "TopK"]
