"""A pair as people write it into a prompt: ``<klora:fox:ink:balance=0.3,rule=smooth>``.

The names of content and style, then settings by name; ``<klora:balance=0.3>`` leaves the pair to the LoRA
tags and the accordion. What a tag names wins over the accordion, and a tag needs no tick.
``javascript/klora.js`` follows the same rules for its live line, but for the values of settings, which only
Python knows.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from klora.errors import SettingsError
from klora.hosts.webui import preset_shelf
from klora.settings import Settings

WORD = "klora"

#: As the host reads its own tags.
_TAG = re.compile(rf"<{WORD}:([^>]+)>")

PRESET = "preset"
"""The setting whose value may hold commas: the names of presets do."""

#: Settings beside those of the rule that a tag may have.
_ALSO = (PRESET, "content_weight", "style_weight", "mode", "incomplete")


@dataclass(frozen=True)
class PairTag:
    """One tag: the names, or ``None`` for both, and the values of settings as they were written."""

    text: str
    content: str | None
    style: str | None
    values: Mapping[str, str]

    def over(self, settings: Settings) -> Settings:
        """``settings`` with what this tag says laid over, its preset first; raises `SettingsError` naming tag
        and value.
        """
        changes: dict[str, object] = {"enabled": True}
        if self.content is not None and self.style is not None:
            changes.update(content=self.content, style=self.style)
        for name, value in self.values.items():
            if name not in allowed():
                raise self._error(f"there is no setting {name!r}; a prompt may set {', '.join(allowed())}")
            try:
                changes[name] = Settings.declaration(name).parse(value)
            except SettingsError as error:
                raise self._error(error.reason) from error
        try:
            return preset_shelf.laid_over(settings, self.values).replace(**changes)
        except SettingsError as error:
            raise self._error(error.reason) from error

    def _error(self, reason: str) -> SettingsError:
        return SettingsError(f"K-LoRA: in {self.text}, {reason.removesuffix('.')}.")


def allowed() -> tuple[str, ...]:
    """Names of the settings that a tag may have."""
    offered = Settings.offered()
    return tuple(one.name for one in offered if one.scope == "rule" or one.name in _ALSO)


def mentions_pair(prompts: Collection[object]) -> bool:
    """Whether any of the prompts holds a tag: a quick look that costs nothing else."""
    return any(isinstance(prompt, str) and f"<{WORD}:" in prompt for prompt in prompts)


def taken_out(prompt: str) -> tuple[str, PairTag | None]:
    """(the prompt without its tag, the tag); raises `SettingsError` for a tag that cannot be read, or two."""
    found = _TAG.findall(prompt)
    if len(found) > 1:
        raise SettingsError(
            f"K-LoRA: the prompt has {len(found)} tags <{WORD}:...>; write one, because a picture has one "
            "pair."
        )
    return _TAG.sub("", prompt), _read(found[0].split(":")) if found else None


def all_taken_out(prompts: Sequence[str]) -> tuple[list[str], PairTag | None]:
    """The same for the prompts of one batch; raises `SettingsError` if they differ in their tags.

    The host loads the LoRAs of a batch's first prompt for all its pictures.
    """
    cleaned = [taken_out(prompt) for prompt in prompts]
    tags = [tag for _, tag in cleaned]
    for tag in tags:
        if tag != tags[0]:
            first, other = ("no pair" if one is None else one.text for one in (tags[0], tag))
            raise SettingsError(
                f"K-LoRA: the prompts of one batch differ in their pair ({first} and {other}), but the WebUI "
                "loads the LoRAs of the first for all; set the batch size to 1 and raise the batch count."
            )
    return [prompt for prompt, _ in cleaned], tags[0] if tags else None


def of_items(items: Sequence[str]) -> PairTag:
    """The tag that the host has parsed into ``items``; raises `SettingsError`."""
    return _read(items)


def _read(items: Sequence[str]) -> PairTag:
    text = f"<{WORD}:{':'.join(items)}>"
    names = []
    for item in items:
        if "=" in item:
            break
        names.append(item.strip())
    if len(names) not in (0, 2) or not all(names):
        raise SettingsError(
            f"K-LoRA: {text} does not name two LoRAs; write the content, the style and then settings, such "
            f"as <{WORD}:fox:ink:balance=0.3>."
        )
    content, style = names or (None, None)
    return PairTag(text, content, style, _values(":".join(items[len(names) :]), text))


def _values(written: str, text: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for part in written.split(",") if written else ():
        key, equals, value = part.partition("=")
        if not equals and list(values)[-1:] == [PRESET]:
            values[PRESET] += f",{part.rstrip()}"
            continue
        name = key.strip().lower().replace(" ", "_")
        if not equals or not name:
            raise SettingsError(
                f"K-LoRA: in {text}, {part.strip()!r} is no setting; write name=value, such as balance=0.3."
            )
        if name in values:
            raise SettingsError(f"K-LoRA: {text} says {name} twice; write it once.")
        values[name] = value.strip()
    return values
