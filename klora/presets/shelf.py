"""The user's own presets: one JSON file, written in one go, never lost to a mistake in it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from klora.errors import SettingsError
from klora.presets.built_in import BUILT_IN
from klora.presets.preset import Preset, checked_name, held_values
from klora.settings import Settings

#: More than this is no file of presets.
LARGEST_FILE = 1_000_000

_lock = Lock()


class Shelf:
    """All presets: the built-in ones, then those of the file at ``path``, which need not exist.

    Every question reads the file again: two browsers and an editor may be at it. What cannot be read is said
    by ``report``: a preset with a mistake is left where it is and not offered, a file that is no JSON is kept
    under another name beside the new one.
    """

    def __init__(self, path: Path, report: Callable[[str], None]) -> None:
        self._path = path
        self._report = report

    def presets(self) -> list[Preset]:
        """All presets that can be used."""
        return [*BUILT_IN, *self._own().values()]

    def names(self) -> list[str]:
        """Their names, the built-in ones first."""
        return [one.name for one in self.presets()]

    def find(self, name: str) -> Preset | None:
        """The preset of this name, letter case aside."""
        return next((one for one in self.presets() if one.name.lower() == name.lower()), None)

    def get(self, name: str) -> Preset:
        """The preset of this name; raises `SettingsError` if there is none."""
        preset = self.find(name)
        if preset is None:
            raise SettingsError(
                f"K-LoRA: there is no preset {name!r}; the presets are: {', '.join(self.names())}."
            )
        return preset

    def save(self, name: str, settings: Settings) -> Preset:
        """Keep settings under a name, in place of what was there; raises `SettingsError` for a bad name."""
        preset = Preset(_own_name(name), held_values(settings))
        with _lock:
            raw = self._raw()
            raw.pop(_spelt(raw, preset.name), None)
            self._write({**raw, preset.name: dict(preset.values)})
        return preset

    def rename(self, name: str, new_name: str) -> Preset:
        """Give a preset of the user's another name; raises `SettingsError` if there is no such preset."""
        new_name = _own_name(new_name)
        with _lock:
            raw = self._raw()
            old = self._own_key(raw, name)
            taken = _spelt(raw, new_name)
            if taken in raw and taken != old:
                raise SettingsError(f"K-LoRA: there is a preset {taken} already; write another name.")
            self._write({new_name if one == old else one: values for one, values in raw.items()})
        return self.get(new_name)

    def delete(self, name: str) -> None:
        """Remove a preset of the user's; raises `SettingsError` if there is no such preset."""
        with _lock:
            raw = self._raw()
            del raw[self._own_key(raw, name)]
            self._write(raw)

    def exported(self) -> str:
        """The user's presets as the text of a file that `import_text` reads."""
        return _as_text({one.name: dict(one.values) for one in self._own().values()})

    def import_text(self, text: str) -> list[str]:
        """Add the presets of an exported file and return their names; raises `SettingsError`, then none is
        added.
        """
        if len(text) > LARGEST_FILE:
            raise SettingsError("K-LoRA: that file is too large for presets; choose a file exported here.")
        try:
            read = _presets_in(json.loads(text))
        except ValueError as error:
            raise SettingsError(
                "K-LoRA: that file is no file of presets; choose one exported here."
            ) from error
        presets = [Preset.checked(_own_name(name), values) for name, values in read.items()]
        with _lock:
            raw = self._raw()
            for one in presets:
                raw.pop(_spelt(raw, one.name), None)
                raw[one.name] = dict(one.values)
            self._write(raw)
        return [one.name for one in presets]

    def _own(self) -> dict[str, Preset]:
        own: dict[str, Preset] = {}
        with _lock:
            raw = self._raw()
        for name, values in raw.items():
            try:
                own[name] = Preset.checked(_own_name(name), values)
            except SettingsError as error:
                self._report(
                    f"{str(error).removesuffix('.')} (in {self._path.name}, where it is left as it is)."
                )
        return own

    def _own_key(self, raw: Mapping[str, Any], name: str) -> str:
        if any(one.name.lower() == name.lower() for one in BUILT_IN):
            raise SettingsError(f"K-LoRA: preset {name} comes with K-LoRA; save your own under another name.")
        key = _spelt(raw, name)
        if key not in raw:
            raise SettingsError(f"K-LoRA: there is no preset {name!r} of yours.")
        return key

    def _raw(self) -> dict[str, Any]:
        """Name -> values as they stand in the file, mistakes included."""
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            return self._set_aside(str(error))
        try:
            return _presets_in(json.loads(text))
        except ValueError as error:
            return self._set_aside(str(error))

    def _set_aside(self, why: str) -> dict[str, Any]:
        aside = next(
            place
            for number in range(1, 10_000)
            if not (place := self._path.with_name(f"{self._path.stem}.broken-{number}.json")).exists()
        )
        try:
            self._path.replace(aside)
        except OSError:
            raise SettingsError(
                f"K-LoRA: {self._path.name} cannot be read ({why}); repair or remove it."
            ) from None
        self._report(f"K-LoRA: {self._path.name} cannot be read ({why}); it is kept as {aside.name}.")
        return {}

    def _write(self, raw: Mapping[str, Any]) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.stem, suffix=".tmp")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(_as_text(raw))
                os.replace(name, self._path)
            except OSError:
                os.unlink(name)
                raise
        except OSError as error:
            raise SettingsError(
                f"K-LoRA: the preset cannot be written ({error.strerror}); free space or permit writing."
            ) from error


def _as_text(raw: Mapping[str, Any]) -> str:
    return json.dumps({"klora_presets": raw}, indent=2, ensure_ascii=False) + "\n"


def _presets_in(document: object) -> dict[str, Any]:
    if not isinstance(document, dict) or not isinstance(document.get("klora_presets"), dict):
        raise ValueError("it holds no object klora_presets")
    return dict(document["klora_presets"])


def _own_name(name: str) -> str:
    text = checked_name(name)
    for one in BUILT_IN:
        if one.name.lower() == text.lower():
            raise SettingsError(f"K-LoRA: preset {one.name} comes with K-LoRA; write another name.")
    return text


def _spelt(raw: Mapping[str, Any], name: str) -> str:
    """How the file spells a name, letter case aside."""
    return next((one for one in raw if one.lower() == name.lower()), name)
