"""What can be measured of a LoRA's dW in one layer: each measure is an entry here.

A rule names the measures that it decides by; nothing else is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from klora.scores.delta import DeltaRows, Scratch, blocks_of, magnitudes
from klora.scores.tallies import EnergyTally, LargestTally, Tally, TotalTally
from klora.scores.top_k import top_k_sum, total

TOP_K_SUM, TOTAL, ENERGY = "top-k sum", "total", "energy"


@dataclass(frozen=True)
class Passing:
    """A dW of ``elements`` elements in ``rows`` rows that passes by in ``blocks`` blocks, and K."""

    elements: int
    rows: int
    blocks: int
    k: int
    scratch: Scratch


@dataclass(frozen=True)
class Measure:
    """One measure, in two forms that give the same number.

    ``of`` maps ``|dW|`` (any shape, floating, on any device) and K to it; ``tally`` takes it from blocks on
    the CPU. ``needs_k`` if K matters.
    """

    name: str
    of: Callable[[Tensor, int], float]
    tally: Callable[[Passing], Tally]
    needs_k: bool = False


def energy(magnitudes: Tensor) -> float:
    """E = squared Frobenius norm of dW, in float64 (EST-LoRA, arXiv 2508.02165)."""
    norm = torch.linalg.vector_norm(magnitudes.flatten(), dtype=torch.float64)
    return float(norm * norm)


def _total(passing: Passing) -> Tally:
    return TotalTally(passing.rows, passing.scratch)


def _largest(passing: Passing) -> Tally:
    return LargestTally(passing.k, passing.elements, passing.blocks, passing.scratch)


MEASURES: Mapping[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure(TOP_K_SUM, top_k_sum, _largest, needs_k=True),
        Measure(TOTAL, lambda magnitudes, _k: total(magnitudes), _total),
        Measure(ENERGY, lambda magnitudes, _k: energy(magnitudes), lambda _: EnergyTally()),
    )
}


def measure_on_device(delta: Tensor, names: Sequence[str], k: int) -> dict[str, float]:
    """The measures of a dW that is whole in a device's memory, each in few large steps."""
    amounts = delta.detach().abs()
    return {name: MEASURES[name].of(amounts, k) for name in names}


def measure_by_rows(delta: DeltaRows, names: Sequence[str], k: int, scratch: Scratch) -> dict[str, float]:
    """The measures of a dW on the CPU, in one pass over blocks of its rows; rarely in two."""
    passing = Passing(math.prod(delta.shape), delta.shape[0], blocks_of(delta), k, scratch)
    tallies = {name: MEASURES[name].tally(passing) for name in names}
    waiting = list(tallies.values())
    while waiting:
        for block in magnitudes(delta, passing.blocks, scratch):
            for tally in waiting:
                tally.add(block)
        waiting = [tally for tally in waiting if tally.needs_another_pass()]
    return {name: tally.result() for name, tally in tallies.items()}
