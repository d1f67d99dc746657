"""LoRA tags that a job adds to its prompts or takes out of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from klora.hosts.webui.roles import TAG_WORDS, Roles, tags_in
from klora.settings import Settings

_TAG = re.compile(r"<\w+:[^>]+>")


#: Mode -> whether content and style take part.
_TAKES_PART = {
    "K-LoRA": (True, True),
    "added": (True, True),
    "content only": (True, False),
    "style only": (False, True),
    "off": (False, False),
}


def changes(roles: Roles, settings: Settings) -> tuple[list[tuple[str, float]], set[str]]:
    """(name, weight) of the LoRAs to add to the prompt, and the names to take out, as the mode wants."""
    wanted: list[tuple[str, float]] = []
    unwanted: set[str] = set()
    takes_part = _TAKES_PART[settings.mode]
    for name, picked, weight, is_wanted in (
        (roles.content, roles.content_picked, settings.content_weight, takes_part[0]),
        (roles.style, roles.style_picked, settings.style_weight, takes_part[1]),
    ):
        if name is None:
            continue
        if not is_wanted:
            unwanted.add(name)
        elif picked:
            wanted.append((name, weight))
    return wanted, unwanted


def changed_prompt(
    prompt: str, wanted: Sequence[tuple[str, float]], unwanted: Collection[str], names: Mapping[str, str]
) -> str:
    """``prompt`` with tags for ``wanted`` and without those for ``unwanted``; ``names`` resolves aliases."""

    def keep(tag: re.Match[str]) -> str:
        found = tags_in(tag[0])
        return "" if found and names.get(found[0], found[0]) in unwanted else tag[0]

    kept = _TAG.sub(keep, prompt) if unwanted else prompt
    return kept + "".join(f"<lora:{name}:{weight:g}>" for name, weight in wanted)


def change_parsed(
    tags: dict[str, list[Any]],
    wanted: Sequence[tuple[str, float]],
    unwanted: Collection[str],
    names: Mapping[str, str],
    make: Callable[[list[str]], Any],
) -> None:
    """The same on tags that the host has parsed already, as it has for the hires pass; in place."""
    for word in TAG_WORDS:
        if word in tags:
            tags[word] = [one for one in tags[word] if names.get(_name(one), _name(one)) not in unwanted]
    for name, weight in wanted:
        tags.setdefault("lora", []).append(make([name, f"{weight:g}"]))


def parsed_names(tags: Mapping[str, Sequence[Any]], words: Collection[str] = TAG_WORDS) -> list[str]:
    """The names of the LoRAs in tags that the host has parsed, in order."""
    return [_name(one) for word in words for one in tags.get(word, ())]


def _name(parsed: Any) -> str:
    return str(parsed.positional[0]) if parsed.positional else ""


def all_of(p: Any) -> list[object]:
    """Every prompt that a job has, as far as the host has written them down."""
    named = ("all_prompts", "all_hr_prompts", "prompts")
    return [prompt for name in named for prompt in getattr(p, name, None) or ()]


def hires_of(p: Any) -> list[str]:
    """The hires prompts of the batch that ``p`` is at, as they were written."""
    if not getattr(p, "enable_hr", False):
        return []
    start = getattr(p, "iteration", 0) * len(p.prompts)
    return list((getattr(p, "all_hr_prompts", None) or [])[start : start + len(p.prompts)])
