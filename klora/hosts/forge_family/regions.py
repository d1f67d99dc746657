"""Which rows of a parameter belong to whom: one fused parameter may hold several contested layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from klora.hosts.forge_family.layers import ContestedLayer
from klora.weights import Winner

Rows = tuple[tuple[int, int], ...]

#: Places in the pair (0 content, 1 style) of those that are not applied.
Losers = tuple[int, ...]


@dataclass(frozen=True)
class Region:
    """Rows of a parameter for which the same LoRAs lose; ``rows`` is ``None`` for all that is left."""

    losers: Losers
    rows: Rows | None


class Regions:
    """Winners of layers, turned into regions of the parameters that hold them."""

    def __init__(
        self, layers: Mapping[str, ContestedLayer], winners: Mapping[str, Winner] | None = None
    ) -> None:
        self._layers = layers
        self.winners = dict(winners or {})
        self._in_parameter: dict[str, list[str]] = {}
        for layer, contested in layers.items():
            for name in contested.parameters:
                self._in_parameter.setdefault(name, []).append(layer)

    def of_layers(self, layers: Iterable[str]) -> tuple[str, ...]:
        """The parameters of those of ``layers`` that are here, each once."""
        known = (self._layers[one] for one in layers if one in self._layers)
        return tuple(dict.fromkeys(name for layer in known for name in layer.parameters))

    def decide(self, winners: Mapping[str, Winner]) -> tuple[str, ...]:
        """Note the winners; return the parameters that change by it."""
        self.winners.update(winners)
        return self.of_layers(winners)

    def decided(self) -> tuple[str, ...]:
        """All parameters that a decision was made for so far."""
        return self.of_layers(self.winners)

    def of_parameter(self, name: str, height: int) -> tuple[Region, ...]:
        """The regions of a parameter with ``height`` rows; the first is of all rows that are left.

        Rows that no contested layer claims get both LoRAs, as the host would add them.
        """
        claimed: dict[Losers, Rows] = {}
        for layer in self._in_parameter[name]:
            losers = self.winners.get(layer, Winner.BOTH).losers
            claimed[losers] = claimed.get(losers, ()) + (self._layers[layer].rows or ((0, height),))
        left = height - sum(stop - start for rows in claimed.values() for start, stop in rows)
        first = () if left else next(iter(claimed))
        others = (Region(losers, rows) for losers, rows in claimed.items() if losers != first)
        return (Region(first, None), *others)


def assembled(regions: Iterable[Region], merged: Callable[[Losers], Tensor]) -> Tensor:
    """One tensor from ``merged``, which makes a new whole parameter without the given losers."""
    result: Tensor | None = None
    for region in regions:
        whole = merged(region.losers)
        if result is None:
            result = whole
            continue
        for start, stop in region.rows or ():
            result[start:stop] = whole[start:stop]
    assert result is not None, "the first region is what is left"
    return result
