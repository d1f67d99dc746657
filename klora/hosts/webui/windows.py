"""The windows of the LoRA tags of a prompt: read, and taken out before the host reads the tags.

The host would stumble over a curve, whose colons it takes for its own, and over nothing else of ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from klora.errors import SettingsError
from klora.hosts.common import block_weight
from klora.hosts.webui.roles import TAG_WORDS
from klora.schedule import Window
from klora.schedule.window_text import KEYS, cut_window, has_curve

_TAG = re.compile(r"<(\w+):([^>]+)>")
_MENTION = re.compile(r"<\w+:[^>]*?(?:" + "|".join(KEYS) + r")\s*=", re.IGNORECASE)

Windows = dict[str, Window]


def mentions_window(prompts: Collection[object]) -> bool:
    """Whether any of the prompts may hold a tag with a window: a quick look that costs nothing else."""
    return any(isinstance(prompt, str) and _MENTION.search(prompt) is not None for prompt in prompts)


def our_keys() -> tuple[str, ...]:
    """The keys that are read here: lora-block-weight, where it is installed, keeps those that it has."""
    if not block_weight.is_installed():
        return KEYS
    return tuple(key for key in KEYS if key not in block_weight.STEP_KEYS)


def _ours_in(items: Sequence[str], keys: Collection[str]) -> Collection[str]:
    """``keys`` for one tag: ``w`` without a curve is lora-block-weight's short word for ``lbw``.

    That it is installed shows in the keys that `our_keys` has left to it.
    """
    if set(keys) >= block_weight.STEP_KEYS or has_curve(items):
        return keys
    return [key for key in keys if key != "w"]


def taken_out(
    prompt: str, keys: Collection[str], names: Mapping[str, str], words: Collection[str] = TAG_WORDS
) -> tuple[str, Windows]:
    """(the prompt without the windows of its LoRA tags, the windows by the LoRAs' names).

    ``names`` resolves aliases, ``words`` are the host's words of LoRA tags. Raises `SettingsError` for a
    value that cannot be read, and for a LoRA that stands in the prompt more than once with a window.
    """
    windows: Windows = {}

    def clean(tag: re.Match[str]) -> str:
        if tag[1] not in words:
            return tag[0]
        told = tag[2].split(":")
        items, window = cut_window(told, tag[0], _ours_in(told, keys))
        if window is None:
            return tag[0]
        _note(windows, names.get(items[0], items[0]) if items else "", window, tag[0])
        return f"<{tag[1]}:{':'.join(items)}>"

    cleaned = _TAG.sub(clean, prompt)
    _refuse_doubles(windows, cleaned, names)
    return cleaned, windows


def taken_out_of_parsed(
    tags: dict[str, list[Any]],
    keys: Collection[str],
    names: Mapping[str, str],
    make: Callable[[list[str]], Any],
) -> Windows:
    """The same on tags that the host has parsed already, as it has for the hires pass; changed in place.

    ``make`` makes a tag of the host's from items.
    """
    windows: Windows = {}
    for word in TAG_WORDS:
        for place, tag in enumerate(tags.get(word, ())):
            text = f"<{word}:{':'.join(tag.items)}>"
            items, window = cut_window(list(tag.items), text, _ours_in(tag.items, keys))
            if window is not None:
                _note(windows, names.get(items[0], items[0]) if items else "", window, text)
                tags[word][place] = make(items)
    return windows


def _note(windows: Windows, name: str, window: Window, tag: str) -> None:
    if name in windows:
        raise _double(name)
    if not name:
        raise SettingsError(f"K-LoRA: {tag} names no LoRA; write its name first.")
    windows[name] = window


def _refuse_doubles(windows: Windows, prompt: str, names: Mapping[str, str]) -> None:
    """A LoRA that stands twice has two weights and one list of layers: its window would hit both."""
    found = [tag[2].split(":")[0] for tag in _TAG.finditer(prompt) if tag[1] in TAG_WORDS]
    present = [names.get(name, name) for name in found]
    for name in windows:
        if present.count(name) > 1:
            raise _double(name)


def _double(name: str) -> SettingsError:
    return SettingsError(
        f"K-LoRA: LoRA {name} stands in the prompt more than once and has start, stop, step or w; "
        "write one tag, with a curve such as w=0:0.2,0.5:1."
    )
