"""Which LoRA of a prompt is the content, which the style, what is left over, what is missing.

Pure: no host is imported. ``javascript/klora.js`` follows the same rules for its live line, and both
are held to the same table of cases (``tests/webui/roles_cases.json``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from klora.errors import SettingsError
from klora.hosts.webui import pair_tags
from klora.settings import FIRST_IN_PROMPT, SECOND_IN_PROMPT, Settings

_TAG = re.compile(r"<(\w+):([^>]+)>")

#: Words of the tags that a host may load as LoRAs; which of them it does is asked of it
#: (`library.tag_words`).
TAG_WORDS = ("lora", "lyco")
_POSITIONS = (FIRST_IN_PROMPT, SECOND_IN_PROMPT)


@dataclass(frozen=True)
class Roles:
    """The cast of one job. ``problem`` is a sentence for the user, or ``None`` when the pair is complete.

    ``content_picked`` and ``style_picked``: chosen in the accordion and absent from the prompt, so the
    job must load it itself. ``extras`` are the other LoRAs of the prompt, which are added normally.
    """

    content: str | None
    style: str | None
    content_picked: bool
    style_picked: bool
    extras: tuple[str, ...]
    problem: str | None


def tags_in(prompt: str, words: Collection[str] = TAG_WORDS) -> tuple[str, ...]:
    """The names in the LoRA tags of a prompt, in order, as the host reads them: with repetitions."""
    names = []
    for word, arguments in _TAG.findall(prompt):
        if word not in words:
            continue
        # As on the host, "te=0.5" is a named argument and may stand before the name.
        unnamed = [part for part in arguments.split(":") if len(part.split("=", 2)) != 2]
        if unnamed:
            names.append(unnamed[0])
    return tuple(names)


def cast(
    prompt: str,
    settings: Settings,
    same_as: Mapping[str, str] | None = None,
    words: Collection[str] = TAG_WORDS,
) -> Roles:
    """Cast the LoRAs of a whole prompt, whose tag ``<klora:content:style>`` wins over ``settings``."""
    try:
        rest, tag = pair_tags.taken_out(prompt)
        chosen = settings if tag is None else tag.over(settings)
    except SettingsError as error:
        return Roles(None, None, False, False, (), str(error))
    return assign(tags_in(rest, words), chosen, same_as)


def assign(tags: Sequence[str], settings: Settings, same_as: Mapping[str, str] | None = None) -> Roles:
    """Cast the LoRAs of a prompt.

    ``same_as`` maps an alias to the name of the same file (see ``library.aliases``), so that a LoRA
    picked by name is recognised in a prompt that uses its alias; all answers are then such names.
    """
    same_as = same_as or {}
    present = _distinct(same_as.get(tag, tag) for tag in tags)
    content_pick = _pick(settings.content, same_as)
    style_pick = _pick(settings.style, same_as)
    content = content_pick or _by_position(settings.content, present, style_pick)
    style = style_pick or _by_position(settings.style, present, content_pick)
    return Roles(
        content=content,
        style=style,
        content_picked=content is not None and content not in present,
        style_picked=style is not None and style not in present,
        extras=tuple(name for name in present if name not in (content, style)),
        problem=_problem(content, style, _distinct([*present, *filter(None, (content_pick, style_pick))])),
    )


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _pick(choice: str, same_as: Mapping[str, str]) -> str | None:
    return None if choice in _POSITIONS else same_as.get(choice, choice)


def _by_position(choice: str, present: Sequence[str], other_pick: str | None) -> str | None:
    """The LoRA at the chosen position of the prompt, never the one picked for the other role.

    Where the other role is picked, one LoRA in the prompt is enough: it is the only one left to take.
    """
    index = _POSITIONS.index(choice)
    if index < len(present) and present[index] != other_pick:
        return present[index]
    left = [name for name in present if name != other_pick]
    if left and (other_pick is not None or index == 0):
        return left[0]
    return None


def _problem(content: str | None, style: str | None, found: Sequence[str]) -> str | None:
    if content is not None and content == style:
        return f"K-LoRA: content and style are both {content}: choose two different LoRAs."
    if content is not None and style is not None:
        return None
    count = f"{len(found)} ({', '.join(found)})" if found else "none"
    if content is None and style is None:
        remedy = "add the content LoRA and the style LoRA to the prompt or pick them in the accordion"
    else:
        missing = "content" if content is None else "style"
        remedy = f"add the {missing} LoRA to the prompt or pick it in the accordion"
    return f"K-LoRA needs two LoRAs, found {count}: {remedy}."
