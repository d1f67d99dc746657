"""Every pair of several LoRA files, the best first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from klora.errors import LoraFileError, PairError
from klora.files import LoraFile
from klora.report.compatibility import PRELIMINARY, Compatibility
from klora.report.directions import Overlap
from klora.report.pair_report import compare

Pairs = Iterable[tuple[LoraFile, LoraFile]]


@dataclass(frozen=True)
class RankedPair:
    """Two files in the order in which they were given, and how they compare. Names are untrusted text."""

    names: tuple[str, str]
    overlap: Overlap
    compatibility: Compatibility

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        content, style = (energy**0.5 for energy in self.overlap.energy)
        return {
            "first": self.names[0],
            "second": self.names[1],
            "strength_ratio": content / style if style > 0 else None,
            "beyond_chance": self.overlap.excess,
            "compatibility": self.compatibility.as_json(),
        }


@dataclass(frozen=True)
class Ranking:
    """``pairs`` by falling index; ``left_out`` are sentences about pairs that cannot be compared."""

    pairs: tuple[RankedPair, ...]
    left_out: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "pairs": [pair.as_json() for pair in self.pairs],
            "left_out": list(self.left_out),
            "status": PRELIMINARY,
        }


def rank_pairs(files: Sequence[LoraFile], progress: Callable[[Pairs], Pairs] = iter) -> Ranking:
    """Compare every two of ``files`` by their factors, without scoring them.

    ``progress`` wraps the pairs, as tqdm does.
    """
    ranked, left_out = [], []
    for content, style in progress(list(combinations(files, 2))):
        try:
            overlap, compatibility = compare(content, style)
        except (PairError, LoraFileError) as error:
            left_out.append(str(error))
            continue
        ranked.append(RankedPair((content.name, style.name), overlap, compatibility))
    ranked.sort(key=lambda pair: (-pair.compatibility.index, pair.names))
    return Ranking(tuple(ranked), tuple(left_out))
