"""XYZ axes: one for each declared setting.

An axis stores its value on ``p.klora_overrides``; the job lays those over the settings of the
accordion (`overridden`). ``p`` is copied shallowly for each cell, so the dict is replaced, never
changed.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

from klora.errors import PairError
from klora.hosts.common import library
from klora.hosts.common.boundary import attempted, for_api
from klora.hosts.webui import preset_shelf
from klora.settings import Setting, Settings

_GRID_SCRIPT = "xyz_grid.py"

#: The host's spelling of several numbers: ``0-1 (+0.1)``, ``0-1 [5]``.
_RANGE = re.compile(r"[+-]?[\d.]+\s*-\s*[+-]?[\d.]+\s*(?:[(\[].*)?")


def register() -> bool:
    """Add the axes to the WebUI's X/Y/Z plot; once, however often it is called.

    Returns whether the plot script was found. Must run while the extension's script is imported:
    the callbacks of the UI come too late, or never, under --nowebui.
    """
    grid = _grid_module()
    if grid is None:
        return False
    present = {option.label for option in grid.axis_options}
    for setting in Settings.offered():
        if _label(setting) not in present:
            grid.axis_options.append(_option(grid, setting))
    return True


def overridden(settings: Settings, p: object) -> Settings:
    """The settings of one cell: those of the accordion with the values of the axes laid over."""
    overrides = getattr(p, "klora_overrides", None)
    return settings.replace(**overrides) if overrides else settings


def _grid_module() -> Any | None:
    """The loaded plot script. Hosts load scripts under names of their own, so it is found by its file."""
    from modules import scripts

    for data in scripts.scripts_data:
        if PurePath(data.path).name == _GRID_SCRIPT and hasattr(data.module, "axis_options"):
            return data.module
    return None


def _label(setting: Setting) -> str:
    return "[K-LoRA] " + ("Enabled" if setting.name == "enabled" else setting.label)


def _option(grid: Any, setting: Setting) -> Any:
    return grid.AxisOption(
        _label(setting),
        float if setting.type == "number" else str,
        _applying(setting),
        format_value=_cell_label,
        confirm=_confirming(setting),
        prepare=_preparing(setting),
        choices=_choosing(setting),
    )


def _applying(setting: Setting) -> Callable[[Any, object, Sequence[object]], None]:
    def apply(p: Any, value: object, _values: Sequence[object]) -> None:
        earlier = getattr(p, "klora_overrides", None) or {}
        # Whoever compares settings wants K-LoRA on, unless the axis "Enabled" itself says otherwise.
        parsed = setting.parse(value)
        under = preset_shelf.shelf().get(str(parsed)).complete() if setting.type == "preset" else {}
        p.klora_overrides = {"enabled": True, **under, **earlier, setting.name: parsed}

    return apply


def _confirming(setting: Setting) -> Callable[[Any, Sequence[object]], None]:
    def confirm(_p: Any, values: Sequence[object]) -> None:
        """Refuse a bad value before the first cell is drawn, not in the middle of the grid."""
        _refuse_bad(setting, values)

    return confirm


def _preparing(setting: Setting) -> Callable[[str], list[str]] | None:
    """For numbers, which the host converts before it lets anybody confirm them: refuse what is none here."""
    if setting.type != "number":
        return None

    def prepare(text: str) -> list[str]:
        values = [value.strip() for row in csv.reader([text], skipinitialspace=True) for value in row]
        _refuse_bad(setting, [one for one in values if one and not _RANGE.fullmatch(one)])
        return values

    return prepare


def _refuse_bad(setting: Setting, values: Sequence[object]) -> None:
    """Raise the error for the first bad value, such that the API answers 422 and its sentence."""
    error = attempted(lambda: _check(setting, values))
    if error is not None:
        raise for_api(error)


def _check(setting: Setting, values: Sequence[object]) -> None:
    for value in values:
        wanted = setting.parse(value)
        is_name = setting.type == "lora" and wanted not in setting.choices
        if is_name and library.find_or_refresh(str(wanted)) is None:
            raise PairError(f"K-LoRA: there is no LoRA {wanted!r}; write its name as in the prompt.")
        if setting.type == "preset":
            preset_shelf.shelf().get(str(wanted))


def _choosing(setting: Setting) -> Callable[[], list[str]] | None:
    if setting.type == "choice":
        return lambda: list(setting.choices)
    if setting.type == "flag":
        return lambda: ["True", "False"]
    if setting.type == "lora":
        return lambda: [*setting.choices, *library.lora_names()]
    if setting.type == "preset":
        return lambda: preset_shelf.shelf().names()
    return None


def _cell_label(_p: object, option: Any, value: object) -> str:
    shown = f"{value:.8g}" if isinstance(value, float) else value
    return f"{option.label.removeprefix('[K-LoRA] ')}: {shown}"
