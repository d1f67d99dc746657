"""Merges that fail in the host without an exception.

While it adds a network to a layer, the host catches what torch raises, for one that memory ran out, counts it
for a comment beside the picture, and takes the layer for merged.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from klora.hosts.common.boundary import OutOfMemoryError

#: What no list of networks is equal to: the host restores such a layer from its backup and merges it anew.
_UNFINISHED = (("a merge that failed",),)


def failures(networks: Any, cast: Iterable[Any]) -> int:
    """How many merges of the networks ``cast`` the host has counted as failed since it loaded them."""
    counted = getattr(getattr(networks, "extra_network_lora", None), "errors", {})
    return sum(counted.get(one.name, 0) for one in cast)  # by the tag's word, or the name that we gave


def give_up(layer: Any, names: Iterable[str]) -> None:
    """Let the next forward of a layer merge it anew, and raise `OutOfMemoryError`.

    For networks that fit the layer: memory is what can be missing.
    """
    layer.network_current_names = _UNFINISHED
    what = f"in the merge of {' and '.join(names)} into {layer.network_layer_name}"
    raise OutOfMemoryError(what)
