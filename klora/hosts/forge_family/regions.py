"""Which rows of a parameter get which shares: one fused parameter may hold several layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from klora.hosts.forge_family.cast_patches import MemberShares
from klora.hosts.forge_family.layers import ChangedLayer
from klora.schedule import LayerShares

Rows = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Region:
    """Rows of a parameter with the same shares; ``rows`` is ``None`` for all that is left."""

    shares: MemberShares
    rows: Rows | None


class Regions:
    """Shares of layers, turned into regions of the parameters that hold them."""

    def __init__(
        self,
        layers: Mapping[str, ChangedLayer],
        members: int,
        shares: Mapping[str, LayerShares] | None = None,
    ) -> None:
        """``members`` is the number of LoRAs in the cast."""
        self._layers = layers
        self._as_the_host: MemberShares = (1.0,) * members
        self.shares = dict(shares or {})
        self._in_parameter: dict[str, list[str]] = {}
        for name, layer in layers.items():
            for parameter in layer.parameters:
                self._in_parameter.setdefault(parameter, []).append(name)

    def of_layers(self, layers: Iterable[str]) -> tuple[str, ...]:
        """The parameters of those of ``layers`` that are here, each once."""
        known = (self._layers[name] for name in layers if name in self._layers)
        return tuple(dict.fromkeys(parameter for layer in known for parameter in layer.parameters))

    def decide(self, shares: Mapping[str, LayerShares]) -> tuple[str, ...]:
        """Note the shares; return the parameters of these layers."""
        self.shares.update(shares)
        return self.of_layers(shares)

    def decided(self) -> tuple[str, ...]:
        """All parameters that a decision was made for so far."""
        return self.of_layers(self.shares)

    def of_parameter(self, name: str, height: int) -> tuple[Region, ...]:
        """The regions of a parameter with ``height`` rows; the first is of all rows that are left.

        Rows that no layer claims, and layers without a decision, get all LoRAs as the host adds them.
        """
        claimed: dict[MemberShares, Rows] = {}
        for layer in self._in_parameter[name]:
            shares = self._conditional(layer)
            claimed[shares] = claimed.get(shares, ()) + (self._layers[layer].rows or ((0, height),))
        left = height - sum(stop - start for rows in claimed.values() for start, stop in rows)
        first = self._as_the_host if left else next(iter(claimed))
        others = (Region(shares, rows) for shares, rows in claimed.items() if shares != first)
        return (Region(first, None), *others)

    def _conditional(self, layer: str) -> MemberShares:
        shares = self.shares.get(layer)
        return self._as_the_host if shares is None else shares.conditional


def assembled(regions: Iterable[Region], merged: Callable[[MemberShares], Tensor]) -> Tensor:
    """One tensor from ``merged``, which makes a new whole parameter with the given shares."""
    result: Tensor | None = None
    for region in regions:
        whole = merged(region.shares)
        if result is None:
            result = whole
            continue
        for start, stop in region.rows or ():
            result[start:stop] = whole[start:stop]
    assert result is not None, "the first region is what is left"
    return result
