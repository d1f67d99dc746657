"""Forge's ``lora_patches``: which file adds what to which parameter.

The table leads from an identifier, a tuple that holds the file's path among other things, to the patches
by parameter. Nothing here depends on where in a tuple something stands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Hashable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

Identifier = tuple[Any, ...]
Entry = Mapping[str, list[Any]]
Patches = Mapping[Identifier, Entry]


class _Withheld(str):
    """A path in an identifier, standing for an entry of which parameters were taken away.

    It carries the whole entry, so that the table can be made whole from any copy that an extension made.
    """

    entry: tuple[Identifier, Entry]


def without(
    patches: Patches, identifiers: Collection[Identifier], parameters: Collection[str]
) -> dict[Identifier, Entry]:
    """The whole table less what the entries of ``identifiers`` do to ``parameters``.

    These entries have other identifiers than before, because the host merges afresh only if those change.
    """
    names = hashlib.sha256(" ".join(sorted(parameters)).encode()).hexdigest()[:16]
    stripped: dict[Identifier, Entry] = {}
    for identifier, entry in patches.items():
        if identifier not in identifiers:
            stripped[identifier] = entry
            continue
        path = next(one for one in identifier if isinstance(one, str))
        withheld = _Withheld(f"{path} without {names}")
        withheld.entry = (identifier, entry)
        stripped[tuple(withheld if one is path else one for one in identifier)] = {
            name: found for name, found in entry.items() if name not in parameters
        }
    return stripped


def whole(patches: Patches) -> dict[Identifier, Entry]:
    """The table as the host built it, in its order, whether or not parameters were taken away."""
    entries = (_whole_entry(identifier, entry) for identifier, entry in patches.items())
    return dict(entries)


def _whole_entry(identifier: Identifier, entry: Entry) -> tuple[Identifier, Entry]:
    withheld = [one for one in identifier if isinstance(one, _Withheld)]
    return withheld[0].entry if withheld else (identifier, entry)


def is_of(identifier: Identifier, paths: Collection[str]) -> bool:
    """Whether the entry comes from one of the files."""
    return any(one in paths for one in identifier)


def online(unet: Any, patches: Patches) -> set[Identifier]:
    """The entries that the host applies in each forward and does not merge. It is asked about one at a time,
    because only it knows where in an identifier that stands."""
    ask = type(unet).has_online_lora
    return {one for one, entry in patches.items() if ask(SimpleNamespace(lora_patches={one: entry}))}


def of_file(patches: Patches, path: str) -> dict[Identifier, Entry]:
    """The entries that come from the file."""
    return {identifier: entry for identifier, entry in patches.items() if is_of(identifier, (path,))}


def touched(patches: Patches, path: str) -> set[str]:
    """The parameters that the file changes."""
    return {name for entry in of_file(patches, path).values() for name in entry}


def for_parameter(patches: Patches, name: str, skipped: Collection[str] = ()) -> list[Any]:
    """What is merged into a parameter, in the host's order, less what the skipped files add."""
    return [
        patch
        for identifier, entry in patches.items()
        if not is_of(identifier, skipped)
        for patch in entry.get(name, ())
    ]


def numbers(patches: Patches, path: str) -> Hashable:
    """How strong the file is applied, also where another extension changed it layer by layer."""
    strengths: list[Hashable] = []
    for identifier, entry in of_file(patches, path).items():
        strengths.append(_numbers(identifier))
        strengths.extend((name, *map(_numbers, found)) for name, found in entry.items())
    return tuple(strengths)


def _numbers(items: Iterable[object]) -> tuple[float, ...]:
    return tuple(one for one in items if isinstance(one, float | int))
