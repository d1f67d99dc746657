"""A pass on a fake host, and shares for its layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from klora.hosts.forge_family.seam import FamilySeam
from klora.schedule import Expected, LayerShares
from tests.hosts.forge_family.hosts import FakeWebUI
from tests.hosts.forge_family.model import Wanted


@contextmanager
def sampling(
    webui: FakeWebUI,
    names: Sequence[str],
    layers: Sequence[str] | None = None,
    expected: float = 1.0,
    lasts: bool = True,
    **weights: float,
) -> Iterator[FamilySeam]:
    """A pass in which the shares of ``layers`` are set, of all by default; the host has loaded the model.

    ``expected`` is the share of every LoRA with which the pass is thought to begin, and, if it ``lasts``, to
    end.
    """
    p = webui.job(**(weights or dict.fromkeys(names, 1.0)))
    webui.adapter.after_activation(p, names)
    seam = webui.adapter.seam(p, names)
    held = [view.name for view in seam.layers()] if layers is None else layers
    told = everywhere(seam, *(expected for _ in names))
    webui.adapter.before_loading(p, seam, Expected({name: told[name] for name in held}, lambda: lasts))
    webui.load()
    with seam.withheld(held), webui.adapter.telling_rows(None, seam):
        yield seam


def everywhere(
    seam: FamilySeam, *shares: float, rows: tuple[float, ...] | None = None
) -> dict[str, LayerShares]:
    """The same shares in all layers."""
    return {view.name: LayerShares(shares, rows) for view in seam.layers()}


def by_layer(seam: FamilySeam, wanted: Wanted) -> dict[str, LayerShares]:
    """Shares by layer, 1 where nothing is said."""

    def of(name: str, layer: str) -> float:
        share = wanted[name]
        return share.get(layer, 1.0) if isinstance(share, Mapping) else share

    return {
        view.name: LayerShares(tuple(of(name, view.name) for name in seam.names)) for view in seam.layers()
    }
