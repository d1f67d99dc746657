"""K-LoRA in a picture's infotext: what is written, and what a pasted text restores.

The host joins its dict of parameters into ``key: value, key: value``. It quotes a value that holds a
comma, a colon or a line break, and reads ``123x456`` as two numbers under ``key-1`` and ``key-2``;
LoRA names can be any of that, so both directions mind it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from klora.errors import SettingsError
from klora.rules import PARTS
from klora.settings import Setting, Settings, SettingValue, shown

PAIR_KEY = "K-LoRA"
FALLBACK_KEY = "K-LoRA fallback"
NOTE_KEY = "K-LoRA note"


@dataclass(frozen=True)
class FusedLora:
    """A LoRA as the infotext names it."""

    name: str
    short_hash: str

    def __str__(self) -> str:
        return f"{self.name} ({self.short_hash})" if self.short_hash else self.name


@dataclass(frozen=True)
class FusedPair:
    """The two LoRAs of a picture."""

    content: FusedLora
    style: FusedLora

    def __str__(self) -> str:
        return f"{self.content} + {self.style}"


def all_keys() -> tuple[str, ...]:
    """Every key this module may write."""
    return (PAIR_KEY, *(one.infotext_key for one in _written_settings()), FALLBACK_KEY, NOTE_KEY)


def clear(params: MutableMapping[str, object]) -> None:
    """Remove what a former batch, or a former cell of a plot, wrote."""
    for key in all_keys():
        params.pop(key, None)


def written(
    settings: Settings, pair: FusedPair | None, fallback: str | None = None, note: str | None = None
) -> dict[str, str]:
    """What goes into the infotext: the pair, the rule, other settings if changed, a fallback, a note.

    The rule is written even where it is the default, so that a picture can be made again after a
    default has changed.
    """
    texts = {PAIR_KEY: str(pair)} if pair is not None else {}
    for setting in _written_settings():
        value = getattr(settings, setting.name)
        if settings.shapes(setting) or (setting.scope != "rule" and value != setting.value_before):
            texts[setting.infotext_key] = _readable(setting, value, settings)
    for key, text in ((FALLBACK_KEY, fallback), (NOTE_KEY, note)):
        if text:
            texts[key] = text
    return {key: _surviving(key, text) for key, text in texts.items()}


def is_in(parameters: Mapping[str, object]) -> bool:
    """Whether a parsed infotext comes from a picture that K-LoRA was asked for."""
    return any(_text(parameters, key) is not None for key in all_keys())


def restored(setting: Setting, parameters: Mapping[str, object]) -> SettingValue | None:
    """The value of one control after pasting; ``None`` leaves the control as it is.

    Without K-LoRA in the text only the box is unticked: the other controls keep what the user chose.
    A value that is no longer valid gives way to the default, a setting that the picture did not know yet to
    what it then was, one that its rule does not read to the default.
    """
    if setting.name == "enabled":
        return is_in(parameters)
    if not is_in(parameters):
        return None
    text = _text(parameters, setting.infotext_key)
    if text is None:
        is_of_a_part = setting.scope == "rule" and setting.name not in PARTS
        is_read = not is_of_a_part or _parts_of(parameters).shapes(setting)
        return setting.value_before if is_read else setting.default
    try:
        return setting.parse(text)
    except SettingsError:
        return setting.default


def _parts_of(parameters: Mapping[str, object]) -> Settings:
    """The settings that choose the rule and the transform of the picture, the others at their defaults."""
    told = {name: restored(Settings.declaration(name), parameters) for name in PARTS}
    return Settings(**told)


def _written_settings() -> tuple[Setting, ...]:
    # That it was on is told by the presence of the other keys.
    return tuple(one for one in Settings.declarations() if one.name != "enabled")


def _readable(setting: Setting, value: SettingValue, settings: Settings) -> str:
    resolved = setting.resolved(settings.values) if setting.resolved is not None else None
    return shown(setting, value) if resolved is None else f"{value} ({resolved})"


def _surviving(key: str, text: str) -> str:
    """``text`` such that the host's writer and parser bring it back.

    The host does not quote a text for its quotation marks, and then its parser runs on to the next
    one; nor does it write a value that equals its key. Both survive as a JSON string, which the
    parser unwraps. A text that the host quotes itself must not be wrapped twice.
    """
    host_quotes = any(mark in text for mark in ",:\n")
    if not host_quotes and ('"' in text or text == key):
        return json.dumps(text, ensure_ascii=False)
    return text


def _text(parameters: Mapping[str, object], key: str) -> str | None:
    if key in parameters:
        return str(parameters[key])
    if f"{key}-1" in parameters and f"{key}-2" in parameters:
        return f"{parameters[f'{key}-1']}x{parameters[f'{key}-2']}"
    return None
