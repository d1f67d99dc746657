"""A plan as the page draws it (``javascript/klora_plan.js``): small, as it is sent while a slider moves."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from klora.files.blocks import block_of_layer
from klora.pictures.blocks import runs_of_blocks
from klora.schedule import Plan
from klora.settings import Settings, shown

#: Shares are sent as whole numbers of 1/1000, in 16 bits.
SHARE_UNIT = 1000
_LARGEST = 32767


def plan_data(plan: Plan, settings: Settings) -> dict[str, Any]:
    """The plan as plain data.

    ``shares`` is base64 of little-endian int16 ``[steps, layers, 2]``: the shares of content and style in
    1/1000. ``blocks`` are (name, first layer, number of layers), ``locks`` the blocks as the setting of
    that name calls them, ``settings`` (label, value) of those that say what plan this is. ``scores`` are
    what the contest compares, of content and style, or ``None``.
    """
    whole = np.clip(np.rint(plan.shares[:, :, :2] * SHARE_UNIT), -_LARGEST, _LARGEST).astype("<i2")
    return {
        "loras": list(plan.loras[:2]),
        "steps": plan.steps,
        "layers": list(plan.layers),
        "blocks": runs_of_blocks(plan.layers),
        "locks": _lockable(plan.layers),
        "shares": base64.b64encode(whole.tobytes()).decode(),
        "scores": _scores(plan),
        "gamma": None if plan.gamma is None else float(f"{plan.gamma:.4g}"),
        "part": round(plan.content_share, 4),
        "settings": told(settings),
    }


def _lockable(layers: Sequence[str]) -> list[str]:
    """The blocks of the layers, each once, in the order of a forward pass."""
    blocks = (block_of_layer(layer) for layer in layers)
    return list(dict.fromkeys(str(block) for block in blocks if block is not None))


def told(settings: Settings) -> list[tuple[str, str]]:
    """(label, value) of the rule, the balance and every other setting of the rule that was changed."""
    always = ("rule", "balance")
    return [
        (one.label, shown(one, settings.values[one.name]))
        for one in sorted(Settings.declarations(), key=lambda one: one.name not in always)
        if settings.shapes(one) and (one.name in always or settings.values[one.name] != one.default)
    ]


def _scores(plan: Plan) -> list[list[float]] | None:
    if plan.scores is None or plan.measure is None:
        return None
    both = (plan.scores.content(plan.measure), plan.scores.style(plan.measure))
    return [[float(f"{score:.4g}") for score in one] for one in both]
