"""What fusion is for, at one glance: a pair's true drawing, each LoRA alone, what methods make of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from klora.lab import checkpoint, truth
from klora.lab.fronts.dealing import Dealt
from klora.lab.fronts.methods import Method
from klora.lab.fronts.sampling import Wanted, pictures
from klora.lab.fronts.store import Sampling
from klora.lab.fronts.study import Prepared
from klora.lab.pairs import Pair

TRUE, CONTENT_ALONE, STYLE_ALONE = "the true drawing", "subject LoRA alone", "style LoRA alone"
Methods = Mapping[str, tuple[Method, float]]
"""What is shown beside truth and LoRAs alone: from a label to a method and its balance."""


def alone(names: tuple[str, ...], side: int, steps: int) -> Dealt:
    """Shares of one LoRA alone, 0 content or 1 style, in every layer and both passes."""
    table = np.zeros((steps, len(names), 2))
    table[..., side] = 1
    return Dealt(names, table, table)


def made(prepared: Prepared, methods: Methods, seed: int, prompt: str | None = None) -> dict[str, Tensor]:
    """The pictures [3, h, w] in bytes of a pair by label: each LoRA alone, then every method.

    What has the same transform is made in one batch. Without ``prompt`` the pair's own is said.
    """
    sampling, as_it_is = prepared.sampling, prepared.branches
    wanted: list[tuple[str, Any, Dealt]] = [
        (label, as_it_is, alone(as_it_is.names, side, sampling.steps))
        for side, label in enumerate((CONTENT_ALONE, STYLE_ALONE))
    ]
    for label, (method, balance) in methods.items():
        _, branches = prepared.transformed(method.settings)
        wanted.append((label, branches, prepared.dealt(method, balance)))
    found: dict[str, Tensor] = {}
    for branches in {id(one): one for _, one, _ in wanted}.values():
        batch = {label: dealt for label, one, dealt in wanted if one is branches}
        asked = [Wanted(seed, dealt, sampling.guidance) for dealt in batch.values()]
        said = prompt or prepared.pair.prompt
        drawn = pictures(prepared.model, branches, said, asked, sampling.steps)
        found.update(zip(batch, drawn, strict=True))
    return {label: found[label] for label, _, _ in wanted}


def row(
    sampling: Sampling, pair: Pair, methods: Methods, seed: int, prompt: str | None = None
) -> dict[str, Tensor]:
    """A pair's pictures [3, h, w] in bytes by label: the truth, each LoRA alone, then every method."""
    prepared = Prepared(checkpoint.model_of(sampling.weights), pair, sampling)
    true = truth.drawings(sampling.weights / truth.NAME)[pair.content.name, pair.style.subject]
    return {TRUE: true, **made(prepared, methods, seed, prompt)}
