"""A host that records what it is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from klora.weights import LayerView, Winner


class FakeSeam:
    """Layers with one-element deltas, so that S_c and S_s are the numbers given here."""

    content_name = "fox"
    style_name = "ink"

    def __init__(self, scores: Mapping[str, tuple[float, float]], key: object = "key") -> None:
        self.scores = dict(scores)
        self.key = key
        self.asked: list[str] = []
        self.told: list[dict[str, Winner]] = []
        self.now: dict[str, Winner] = {}
        self.held: list[list[str]] = []
        self.withheld_ever: list[list[str]] = []

    def shared_layers(self) -> Sequence[LayerView]:
        return [LayerView(name, "attn" in name, 1, 1) for name in self.scores]

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

    def apply(self, winners: Mapping[str, Winner]) -> None:
        assert self.held, "told to apply while nothing is withheld"
        assert set(winners) <= set(self.held[-1])
        self.told.append(dict(winners))
        self.now.update(winners)
