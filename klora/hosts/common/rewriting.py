"""LoRAs that a transform has rewritten, in the dialect that every WebUI reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from klora.files import LoraFile, read_lora
from klora.files.conversion import state_dict_in
from klora.hosts.common.library import KnownLora
from klora.planning import rewritten
from klora.settings import Settings


@dataclass(frozen=True, eq=False)
class RewrittenLora:
    """What a host is to apply under the name of one of its LoRAs, in memory and for this job alone.

    ``tensors`` are named as in a file of kohya's; ``mark`` tells these numbers from all others.
    """

    tensors: Mapping[str, Tensor]
    mark: str


def rewritten_loras(content: KnownLora, style: KnownLora, settings: Settings) -> dict[str, RewrittenLora]:
    """By name those of the pair that the transform of the settings changes; none if it changes none.

    Raises `LoraFileError` and `PairError` where it cannot.
    """
    transform = settings.chosen_transform
    if not transform.changes_pairs:
        return {}
    before = [read_lora(known.path, name=known.name) for known in (content, style)]
    after = rewritten(before[0], before[1], settings)
    return {
        known.name: RewrittenLora(state_dict_in(new, "kohya"), _mark(new, transform.name))
        for known, old, new in zip((content, style), before, after, strict=True)
        if new.identity != old.identity
    }


def _mark(file: LoraFile, transform: str) -> str:
    return f"{transform} {file.identity.rewritten[:16]}"
