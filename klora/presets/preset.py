"""What a preset is: a name and the values of the settings that decide how a pair is fused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from klora.errors import SettingsError
from klora.options import Setting, SettingValue
from klora.settings import NO_PRESET, Settings

LONGEST_NAME = 60


def is_held(setting: Setting) -> bool:
    """Whether presets hold a setting: those of the rule, and whether windows in tags are read."""
    return setting.scope == "rule" or setting.name == "windows"


def held_values(settings: Settings) -> dict[str, SettingValue]:
    """What a preset of these settings holds: of the rule's settings those that the chosen rule reads."""
    return {
        one.name: settings.values[one.name]
        for one in Settings.declarations()
        if is_held(one) and (settings.shapes(one) or one.scope != "rule")
    }


@dataclass(frozen=True)
class Preset:
    """A name and values; settings that it does not name are at their defaults."""

    name: str
    values: Mapping[str, SettingValue]

    @staticmethod
    def checked(name: object, values: object) -> Preset:
        """A preset from what somebody wrote; raises `SettingsError` naming what is wrong with it."""
        if not isinstance(values, Mapping):
            raise SettingsError(
                f"K-LoRA: preset {name} holds no settings; write an object of names and values."
            )
        for one in values:
            if not is_held(Settings.declaration(str(one))):
                raise SettingsError(f"K-LoRA: preset {name} holds {one}, which is no setting of the rule.")
        settings = Settings.from_mapping({str(one): value for one, value in values.items()})
        return Preset(checked_name(name), {str(one): settings.values[str(one)] for one in values})

    def complete(self) -> dict[str, SettingValue]:
        """Values of all settings that presets hold."""
        return {
            one.name: self.values.get(one.name, one.default)
            for one in Settings.declarations()
            if is_held(one)
        }

    def is_chosen_by(self, settings: Settings) -> bool:
        """Whether these settings do what the preset does."""
        return held_values(settings) == held_values(settings.replace(**self.complete()))


def checked_name(name: object) -> str:
    """A name fit for a list and for an infotext; raises `SettingsError` otherwise."""
    text = " ".join(str(name).split()) if isinstance(name, str) else ""
    if not text or len(text) > LONGEST_NAME or not text.isprintable() or text.lower() == NO_PRESET:
        raise SettingsError(
            f"K-LoRA: {str(name)[:LONGEST_NAME]!r} is no name for a preset; "
            f"write 1 to {LONGEST_NAME} letters in one line."
        )
    return text
