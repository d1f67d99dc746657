"""What the accordion does with presets: each function is an event of the page, and none of them raises."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

from klora.errors import KloraError
from klora.hosts.common.boundary import attempted
from klora.hosts.webui.preset_shelf import shelf
from klora.presets import NO_PRESET, Preset, Shelf
from klora.settings import Setting, Settings


def held_settings() -> list[Setting]:
    """The settings whose controls a chosen preset sets, in the order in which `chosen` answers."""
    held = Preset("", {}).complete()
    return [one for one in Settings.offered() if one.name in held]


def names() -> list[str]:
    """What the list of presets offers."""
    said: list[str] = []
    found = attempted(lambda: shelf(said.append).names())
    return [] if isinstance(found, KloraError) else found


def chosen(name: object) -> list[Any]:
    """A value for each of `held_settings`, then a note: what happens when a preset is picked."""
    import gradio as gr

    unchanged = [gr.update() for _ in held_settings()]
    if name in (None, "", NO_PRESET):
        return [*unchanged, _note([])]
    said: list[str] = []
    preset = attempted(lambda: shelf(said.append).get(str(name)))
    if isinstance(preset, KloraError):
        return [*unchanged, _note([*said, str(preset)])]
    values = preset.complete()
    return [*(gr.update(value=values[one.name]) for one in held_settings()), _note(said)]


def saved(name: object, *arguments: Any) -> list[Any]:
    """(list of presets, note) after the settings on the page were saved under ``name``."""

    def save(on: Shelf) -> tuple[str, str]:
        preset = on.save(str(name), Settings.from_arguments(arguments))
        return preset.name, "Saved:"

    return _changed(name, save)


def renamed(new_name: object, name: object) -> list[Any]:
    """(list of presets, note) after a preset of the user's got a new name."""
    return _changed(new_name, lambda on: (on.rename(str(name), str(new_name)).name, "Renamed:"))


def deleted(confirmed: object, name: object) -> list[Any]:
    """(list of presets, note) after a preset of the user's was deleted."""

    def delete(on: Shelf) -> tuple[str, str]:
        on.delete(str(name))
        return NO_PRESET, "Deleted:"

    return _changed(confirmed, delete, str(name))


def exported() -> str:
    """The user's presets as text, for a file that the browser saves."""
    said: list[str] = []
    found = attempted(lambda: shelf(said.append).exported())
    return "" if isinstance(found, KloraError) else found


def imported(text: object) -> list[Any]:
    """(list of presets, note) after the presets of a file were added."""

    def add(on: Shelf) -> tuple[str, str]:
        added = on.import_text(str(text))
        return (added[0] if added else NO_PRESET), "Imported:"

    return _changed(text, add)


def listed() -> Any:
    """The list of presets as it is now, for the tab in which it was not changed."""
    import gradio as gr

    return gr.update(choices=names())


def _changed(answer: object, change: Callable[[Shelf], tuple[str, str]], told: str = "") -> list[Any]:
    """Do it, unless the user pressed Cancel in the browser's question, where the answer is empty."""
    import gradio as gr

    if answer in (None, "", False):
        return [gr.update(), _note([])]
    said: list[str] = []
    done = attempted(lambda: change(shelf(said.append)))
    if isinstance(done, KloraError):
        return [gr.update(choices=names()), _note([*said, str(done)])]
    name, what = done
    return [gr.update(choices=names(), value=name), _note(said, (what, told or name))]


def _note(problems: list[str], done: tuple[str, str] | None = None) -> str:
    lines = [f'<p class="klora-problem">{html.escape(one)}</p>' for one in problems]
    if done is not None:
        what, name = done
        lines.append(f'<p><span>{what}</span> <span class="klora-name">{html.escape(name)}</span></p>')
    return f'<div class="klora-notes" aria-live="polite">{"".join(lines)}</div>' if lines else ""
