"""Shares that no moment changes: where a plan has them, one ordinary LoRA file does the same."""

from __future__ import annotations

import numpy as np

from klora.errors import SettingsError
from klora.planning.planner import Planner
from klora.schedule import evenly_spaced

#: So many moments stand for all: a layer that changes hands does so between two of them.
_MOMENTS = 1000

_GUIDANCE_SCALE = 7.0


def static_shares(planner: Planner) -> dict[str, tuple[float, float]]:
    """Layer -> shares of content and style; raises `SettingsError` if any of them changes in time, or differs
    between the two passes of the guidance.
    """
    first, *others = (planner.shares(one) for one in evenly_spaced(_MOMENTS, _GUIDANCE_SCALE))
    if first.unconditional is not None:
        raise SettingsError(
            f"K-LoRA: guidance is {planner.settings.guidance}, but one LoRA file acts on both sides of the "
            "guidance alike; set guidance to both."
        )
    changing = np.zeros(len(planner.layers), dtype=bool)
    for moment in others:
        changing |= (moment.conditional != first.conditional).any(axis=1)
    if changing.any():
        raise SettingsError(
            f"K-LoRA: with the rule {planner.rule.name}, {int(changing.sum())} of {len(planner.layers)} "
            "layers change during the sampling, which one LoRA file cannot do; choose the rule weights, "
            "which adds "
            "both, or lock the blocks that change."
        )
    table = first.conditional[:, :2].tolist()
    return {
        layer.name: (content, style) for layer, (content, style) in zip(planner.layers, table, strict=True)
    }
