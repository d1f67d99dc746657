"""Under which key the scores of two networks of A1111's may be kept on disk, if at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from klora.hosts.a1111.merging import adds_the_same
from klora.hosts.a1111.multiplier import scored_multiplier
from klora.hosts.a1111.reading import mark_of
from klora.planning import content_hash


def networks_key(pair: Iterable[Any], contested: Iterable[Any]) -> Sequence[object] | None:
    """Plain data that tells two networks by what their files hold, and how strongly they are applied.

    ``contested`` are the modules of both for the layers that both change. ``None`` where a dW depends on the
    checkpoint's weight, as DoRA's does, or another extension may have changed the numbers. Raises
    `LoraFileError` if a file is gone.
    """
    pair = tuple(pair)
    marks = [mark_of(network) for network in pair]
    if None in marks or not all(map(adds_the_same, contested)):
        return None
    return [
        (content_hash(network.network_on_disk.filename), mark, scored_multiplier(network), network.dyn_dim)
        for network, mark in zip(pair, marks, strict=True)
    ]
