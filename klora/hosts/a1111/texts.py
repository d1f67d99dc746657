"""What A1111 keeps of encoded prompts: by their tags, and so without a word of who read the LoRAs' files.

It keeps them for all jobs. A job in which K-LoRA gives the text encoder other LoRAs than the host's keeps its
own.
"""

from __future__ import annotations

import importlib
from collections.abc import Hashable
from typing import Any

#: The caches on a job, each the list [what was asked for, the answer].
_CACHES = ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc")


class _OwnTexts(list[Any]):
    """Such a cache for one job. It is empty while other networks are loaded than when it was filled: not all
    batches of a job need K-LoRA, and the host is asked about their texts by the same tags.
    """

    def __init__(self) -> None:
        super().__init__([None, None])
        self._filled_with = _loaded_names()

    def __getitem__(self, place: Any) -> Any:
        return super().__getitem__(place) if self._filled_with == _loaded_names() else None

    def __setitem__(self, place: Any, value: Any) -> None:
        self._filled_with = _loaded_names()
        super().__setitem__(place, value)


def keep_own_texts(p: Any) -> None:
    """From now on, what ``p`` encodes is kept for ``p`` alone, and for the networks that are loaded then."""
    for name in _CACHES:
        if hasattr(p, name) and not isinstance(getattr(p, name), _OwnTexts):
            setattr(p, name, _OwnTexts())


def _loaded_names() -> Hashable:
    """A network of K-LoRA's has a name of its own (`klora.hosts.a1111.reading`)."""
    return tuple(network.name for network in importlib.import_module("networks").loaded_networks)
