"""The presets of this WebUI: where their file lies, and what a preset's name does in a job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from klora.presets import BUILT_IN, NO_PRESET, Preset, Shelf
from klora.settings import Settings

FILE = "klora-presets.json"


def shelf(report: Callable[[str], None] = print) -> Shelf:
    """The shelf whose file lies in the WebUI's data folder."""
    from modules.paths_internal import data_path

    return Shelf(Path(data_path) / FILE, report)


def with_values(arguments: Sequence[object]) -> Sequence[object]:
    """Arguments of a job; where they are names and values, a preset among them is laid under the others.

    Raises `SettingsError` for a preset that does not exist. A page sends all values, and the preset's name
    only says where they come from.
    """
    if not arguments or not isinstance(arguments[0], Mapping):
        return arguments
    name = arguments[0].get("preset", NO_PRESET)
    if name == NO_PRESET:
        return arguments
    preset = shelf().get(str(name))
    return [{**preset.complete(), **arguments[0], "preset": preset.name}, *arguments[1:]]


def laid_over(settings: Settings, named: Mapping[str, object]) -> Settings:
    """``settings`` with the values of the preset among the ``named`` ones, if there is one.

    Raises `SettingsError` for a preset that does not exist.
    """
    name = str(named.get("preset", NO_PRESET))
    if name == NO_PRESET:
        return settings
    preset = _built_in(name) or shelf().get(name)
    return settings.replace(**preset.complete())


def truly_named(settings: Settings) -> Settings:
    """The same settings, with no preset's name where they are no longer what that preset holds."""
    if settings.preset == NO_PRESET:
        return settings
    preset = _built_in(settings.preset) or shelf().find(settings.preset)
    if preset is not None and preset.is_chosen_by(settings):
        return settings.replace(preset=preset.name)
    return settings.replace(preset=NO_PRESET)


def _built_in(name: str) -> Preset | None:
    """The preset of this very name that comes with K-LoRA: it stands in no file."""
    return next((one for one in BUILT_IN if one.name == name), None)
