"""A host that records what it is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from klora.planning import LayerView
from klora.schedule import LayerShares
from klora.weights.branch import Branches


class FakeSeam:
    """Layers with one-element deltas, so that S_c and S_s are the numbers given here."""

    def __init__(
        self,
        scores: Mapping[str, tuple[float, float]],
        key: object = "key",
        *,
        names: tuple[str, ...] = ("fox", "ink"),
        alone: Mapping[str, int] | None = None,
    ) -> None:
        """``alone``: layers that only the LoRA at a place of the cast changes."""
        self.names = names
        self.scores = dict(scores)
        self.alone = dict(alone or {})
        self.key = key
        self.branches = Branches()
        self.asked: list[str] = []
        self.told: list[dict[str, LayerShares]] = []
        self.now: dict[str, LayerShares] = {}
        self.held: list[list[str]] = []
        self.withheld_ever: list[list[str]] = []

    def layers(self) -> Sequence[LayerView]:
        shared = [LayerView(name, "attn" in name, {0: 1, 1: 1}) for name in self.scores]
        return [*shared, *(LayerView(name, "attn" in name, {place: 1}) for name, place in self.alone.items())]

    def deltas(self, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked.append(layer)
        content, style = (torch.tensor([[one]], dtype=torch.float64) for one in self.scores[layer])
        return content, style

    def score_key(self) -> object:
        return self.key

    @contextmanager
    def withheld(self, layers: Sequence[str]) -> Iterator[None]:
        self.held.append(list(layers))
        self.withheld_ever.append(list(layers))
        try:
            yield
        finally:
            self.held.pop()
            self.now.clear()

    def apply(self, shares: Mapping[str, LayerShares]) -> None:
        assert self.held, "told to apply while nothing is withheld"
        assert set(shares) <= set(self.held[-1])
        self.told.append(dict(shares))
        self.now.update(shares)
