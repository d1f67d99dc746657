"""Forge's ``lora_patches``: which file adds what to which parameter.

The table leads from an identifier, a tuple that holds the file's path among other things, to the patches
by parameter. Nothing here depends on where in a tuple something stands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from types import SimpleNamespace
from typing import Any

Identifier = tuple[Any, ...]
Entry = Mapping[str, list[Any]]
Table = Mapping[Identifier, Entry]


class _Withheld(str):
    """A path in an identifier, standing for an entry of which parameters were taken away.

    It carries the whole entry, so that the table can be made whole from any copy that an extension made.
    """

    entry: tuple[Identifier, Entry]


def without(
    table: Table, instead: Mapping[Identifier, Entry], parameters: Collection[str], state: str
) -> dict[Identifier, Entry]:
    """The whole table, but the entries of ``instead`` do to ``parameters`` only what stands there.

    These entries have other identifiers than before, because the host merges afresh only if those change:
    ``state`` is all that the patches of ``instead`` depend on.
    """
    told = " ".join((state, *sorted(parameters)))
    digest = hashlib.sha256(told.encode()).hexdigest()[:32]

    def changed(identifier: Identifier, entry: Entry) -> tuple[Identifier, Entry]:
        path = next(one for one in identifier if isinstance(one, str))
        withheld = _Withheld(f"{path} without {digest}")
        withheld.entry = (identifier, entry)
        left = {name: found for name, found in entry.items() if name not in parameters}
        left |= {name: found for name, found in instead[identifier].items() if found}
        return tuple(withheld if one is path else one for one in identifier), left

    return dict(changed(*item) if item[0] in instead else item for item in table.items())


def is_ours(identifier: Identifier) -> bool:
    """Whether `without` made the entry."""
    return any(isinstance(one, _Withheld) for one in identifier)


def whole(table: Table) -> dict[Identifier, Entry]:
    """The table as the host built it, in its order, whether or not parameters were taken away."""
    return dict(
        next((one.entry for one in item[0] if isinstance(one, _Withheld)), item) for item in table.items()
    )


def of_files(table: Table, *paths: str) -> set[Identifier]:
    """The entries that come from one of the files."""
    return {identifier for identifier in table if any(one in paths for one in identifier)}


def online(unet: Any, table: Table) -> set[Identifier]:
    """The entries that the host applies in each forward and does not merge. It is asked about one at a time,
    because only it knows where in an identifier that stands."""
    ask = type(unet).has_online_lora
    return {one for one, entry in table.items() if ask(SimpleNamespace(lora_patches={one: entry}))}


def by_parameter(table: Table, identifiers: Collection[Identifier]) -> dict[str, list[Any]]:
    """What these entries do to each parameter, in the host's order."""
    found: dict[str, list[Any]] = {}
    for identifier, entry in table.items():
        if identifier in identifiers:
            for name, patches in entry.items():
                found.setdefault(name, []).extend(patches)
    return found


def touches(table: Table, path: str) -> bool:
    """Whether the file changes any parameter."""
    return any(table[identifier] for identifier in of_files(table, path))
