"""What fusion is for, at one glance: a pair's true drawing, each LoRA alone, what methods make of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from klora.lab import sheets
from klora.lab.fronts.dealing import Dealt
from klora.lab.fronts.methods import Method
from klora.lab.fronts.sampling import Wanted, pictures
from klora.lab.fronts.store import Sampling
from klora.lab.fronts.study import Prepared, loaded_model
from klora.lab.world2 import truth
from klora.lab.world2.pairs import Pair

TRUE, CONTENT_ALONE, STYLE_ALONE = "the true drawing", "subject LoRA alone", "style LoRA alone"


def _alone(names: tuple[str, ...], side: int, steps: int) -> Dealt:
    """Shares of one LoRA alone in every layer, in both passes."""
    table = np.zeros((steps, len(names), 2))
    table[..., side] = 1
    return Dealt(names, table, table)


def row(
    sampling: Sampling, pair: Pair, methods: Mapping[str, tuple[Method, float]], seed: int
) -> list[Tensor]:
    """A pair's pictures [3, h, w] in bytes: the truth, each LoRA alone, then every method at its balance."""
    prepared = Prepared(loaded_model(sampling.weights), pair, sampling)
    branches, steps = prepared.branches, sampling.steps
    dealt = [_alone(branches.names, side, steps) for side in (0, 1)]
    dealt += [prepared.dealt(method, balance) for method, balance in methods.values()]
    wanted = [Wanted(seed, one, sampling.guidance) for one in dealt]
    made = pictures(prepared.model, branches, pair.prompt, wanted, steps)
    true = truth.drawings(sampling.weights / truth.NAME)[pair.content.name, pair.style.subject]
    return [true, *made]


def sheet(
    sampling: Sampling,
    pairs: Sequence[Pair],
    methods: Mapping[str, tuple[Method, float]],
    seed: int = 0,
    enlarge: int = 1,
) -> Any:
    """A ``PIL.Image`` with a row for each pair; ``methods`` lead from labels to a method and a balance.

    The first seed of every pair: nothing is picked.
    """
    rows = [row(sampling, pair, methods, seed) for pair in pairs]
    labels = [f"{pair.content.trigger},\n{pair.style.subject}" for pair in pairs]
    heads = [TRUE, CONTENT_ALONE, STYLE_ALONE, *methods]
    return sheets.labelled_sheet(rows, labels, heads, enlarge=enlarge)
