"""The LoRA files that the WebUI knows, as its built-in Lora extension lists them.

The whole family (A1111, Forge, Neo, reForge) keeps the same tables in a top-level module
``networks``; what they can do is asked of the module, never of a version.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from klora.errors import HostError, PairError
from klora.hosts.common.foreign import foreign

_TABLES = ("available_networks", "available_network_aliases", "list_available_networks")


@dataclass(frozen=True)
class KnownLora:
    """One LoRA file: the name a prompt may use, its alias, where it lies."""

    name: str
    alias: str
    path: str
    entry: Any = field(repr=False, compare=False)

    @property
    def short_hash(self) -> str:
        """The host's short hash; the first question may read the whole file, so it is asked late."""
        if not self.entry.shorthash:
            self.entry.read_hash()
        return str(self.entry.shorthash or "")


def lora_names() -> list[str]:
    """The names of all LoRAs, sorted for reading."""
    return sorted(_networks().available_networks, key=str.casefold)


def find(name: str) -> KnownLora | None:
    """The LoRA that a tag ``<lora:name:1>`` loads, by name or alias; ``None`` if the host has none."""
    networks = _networks()
    # Two files may claim one alias; the host then only lets it mean the file of that name.
    contested = name.lower() in getattr(networks, "forbidden_network_aliases", {})
    table = networks.available_networks if contested else networks.available_network_aliases
    entry = table.get(name)
    if entry is None:
        return None
    return KnownLora(name=entry.name, alias=entry.alias, path=entry.filename, entry=entry)


def find_or_refresh(name: str) -> KnownLora | None:
    """As `find`; a file that was dropped into the folder since is found by its name.

    It is added to the host's tables. To read all of them anew would empty them for a while, and a job that
    runs meanwhile would find no LoRA at all.
    """
    known = find(name)
    if known is None:
        _look_for(name)
        known = find(name)
    return known


def not_found(name: str) -> PairError:
    """The error for a LoRA that the host does not have."""
    return PairError(f"LoRA {name} was not found; check its name and press refresh in the Lora tab.")


def tag_words() -> tuple[str, ...]:
    """The words of the tags that the host loads as LoRAs: ``lyco`` beside ``lora`` where it is registered."""
    extra_networks = importlib.import_module("modules.extra_networks")
    tables = ("extra_network_registry", "extra_network_aliases")
    registered = {word for table in tables for word in getattr(extra_networks, table, ())}
    return tuple(word for word in ("lora", "lyco") if word == "lora" or word in registered)


def aliases() -> dict[str, str]:
    """Every alias that differs from its file's name, and that name."""
    found = {}
    for alias in list(_networks().available_network_aliases):  # a job may add to it meanwhile
        lora = find(alias)
        if lora is not None and lora.name != alias:
            found[alias] = lora.name
    return found


def refresh() -> None:
    """Let the host read its LoRA folder again."""
    _networks().list_available_networks()


def _look_for(name: str) -> None:
    add = getattr(_networks(), "update_available_networks_by_names", None)
    if callable(add):
        add([name])
    else:
        refresh()


def _networks() -> ModuleType:
    try:
        networks = importlib.import_module("networks")
    except ImportError as error:
        raise _no_library() from error
    if not all(hasattr(networks, table) for table in _TABLES):
        raise _no_library()
    return networks


def _no_library() -> HostError:
    return foreign() or HostError(
        "K-LoRA needs the WebUI's built-in Lora extension, and it is not there; "
        "switch it on in the Extensions tab and restart."
    )
