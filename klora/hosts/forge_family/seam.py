"""The seam of the Forge family: what of a patcher's patches is the cast's, withheld and put in by shares.

The host is shown a patcher without the patches of the layers that are controlled before it loads the
denoiser for a pass, or, where it can merge by shares, with the shares that the pass is likely to begin with:
then it has nothing to merge for the next picture of a pair. While sampling, a parameter that is to have other
shares is a new one, merged by the host's own functions from the clean weight and all patches, those of the
cast with their strengths times their shares; where the host applies LoRAs in each forward, that forward is
told instead. The host's own objects are never written into, and all are put back.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from klora.errors import KloraError
from klora.hosts.common.layers_on_disk import LayersOnDisk
from klora.hosts.forge_family.deltas import Deltas
from klora.hosts.forge_family.denoiser import PatchedDenoiser
from klora.hosts.forge_family.layers import changed_layers
from klora.hosts.forge_family.reading import mark_of, state_of
from klora.hosts.forge_family.regions import Region, Regions
from klora.hosts.forge_family.side_branches import SideBranches
from klora.hosts.forge_family.storage import shape_of
from klora.planning import LayerView, content_hash, delta_digest
from klora.schedule import Expected, LayerShares


@dataclass(frozen=True)
class Checkpoint:
    """What is loaded: its file, as far as the host says, and its base model, whose names its layers have."""

    file: str | None
    base_model: str


class FamilySeam:
    """The seam for the LoRA files of a cast, by path, in the patches of a denoiser.

    Raises `HostError` if its weights cannot be exchanged.
    """

    def __init__(
        self,
        names: Sequence[str],
        paths: Sequence[str],
        denoiser: PatchedDenoiser,
        checkpoint: Checkpoint,
    ) -> None:
        self.names = tuple(names)
        self.paths = tuple(paths)
        self._on_disk = LayersOnDisk(self.paths)
        self._held: Sequence[str] | None = None
        self._failed: KloraError | None = None
        self._watch: RemovableHandle | None = None
        self._attach(denoiser, checkpoint)

    def _attach(self, denoiser: PatchedDenoiser, checkpoint: Checkpoint) -> None:
        denoiser.refuse()
        self._denoiser = denoiser
        self._checkpoint = checkpoint
        touched = denoiser.patches.touched
        self._layers = changed_layers(denoiser.unet.model, self.paths, touched, checkpoint.base_model)
        self._sizes = {
            name: {one: shape_of(denoiser.clean(one)) for one in layer.parameters}
            for name, layer in self._layers.items()
        }
        self._regions = Regions(self._layers, len(self.names))
        self._deltas = Deltas(denoiser, self.names)
        self._branches = SideBranches(denoiser, self._deltas, self._on_disk, self.paths)
        self._in_place: dict[str, Sequence[Region]] = {}
        self._expected: dict[str, Sequence[Region]] = {}

    # --- Planning -------------------------------------------------------------------------------------

    def layers(self) -> Sequence[LayerView]:
        """The denoiser's layers that any of the files changes, in forward order."""
        return [layer.view for layer in self._layers.values()]

    def deltas(self, layer: str) -> tuple[Tensor, Tensor]:
        """Both dW in fp32, as the host merges them."""
        changed = self._layers[layer]
        return self._deltas.of_weight(0, changed), self._deltas.of_weight(1, changed)

    def energy_rank(self, layer: str, place: int) -> int | None:
        """As the factors in the file tell it."""
        return self._on_disk.energy_rank(layer, place)

    def score_key(self) -> Hashable:
        """Content and style as they are on disk, how strong they are applied, and the checkpoint."""
        return (self._checkpoint.file, *self._states()[:2])

    def lasting_key(self) -> Sequence[object] | None:
        """The same by what the files hold, with a sample of what the host has read of them.

        ``None`` where what a LoRA adds depends on the checkpoint's weight, or only the host can read it.
        """
        contested = {name: layer for name, layer in self._layers.items() if layer.view.is_shared}
        if any(layer.needs_base[place] for layer in contested.values() for place in (0, 1)):
            return None
        strengths = map(self._denoiser.patches.strengths, (0, 1))
        files = [
            (content_hash(path), mark_of(path), strength)
            for path, strength in zip(self.paths, strengths, strict=False)
        ]
        shapes = {name: self._sizes[name][str(layer.weight)] for name, layer in contested.items()}
        geometry = [(name, list(shape)) for name, shape in shapes.items()]
        return ["forge family", *files, geometry, delta_digest(self, shapes)]

    # --- Withholding and applying -----------------------------------------------------------------------

    def expecting(self, expected: Expected) -> Any:
        """The patcher that the host is to load for a pass in which the shares of these layers are set here.

        Where a whole parameter has the same expected shares, the host may merge by them, and finds it merged
        for the next picture of the same pair; some hosts only what ``lasts``. Raises `HostError` if a weight
        is in a storage that is neither exchanged nor left in place.
        """
        self._expected = {}
        if self._denoiser.tells_of_loading or expected.lasts():
            self._expected = dict(self._to_merge(expected.shares))
        return self._without(expected.shares)

    def _to_merge(self, shares: Mapping[str, LayerShares]) -> Iterator[tuple[str, Sequence[Region]]]:
        regions = Regions(self._layers, len(self.names), shares)
        for name in regions.of_layers(shares):
            parts = self._regions_of(name, regions)
            if len(parts) == 1 and not self._denoiser.is_on_the_fly(name):
                yield name, parts

    def _without(self, layers: Iterable[str]) -> Any:
        parameters = self._regions.of_layers(layers)
        self._denoiser.refuse_storage(parameters)
        merged = {name: region.shares for name, (region, *_) in self._expected.items()}
        return self._denoiser.without(parameters, merged, self._states())

    def _regions_of(self, name: str, regions: Regions) -> Sequence[Region]:
        shape = shape_of(self._denoiser.exchanged.current(name))
        return regions.of_parameter(name, shape[0] if shape else 1)

    def _states(self) -> tuple[Hashable, ...]:
        """What the patches of each file of the cast depend on."""
        strengths = self._denoiser.patches.strengths
        return tuple(state_of(path, strengths(place)) for place, path in enumerate(self.paths))

    @contextmanager
    def withheld(self, layers: Sequence[str]) -> Iterator[None]:
        """Exchange what is the host's while inside; all of it is put back on the way out."""
        with ExitStack() as stack:  # each is undone whatever happens in the others
            stack.callback(lambda: self._denoiser.end())  # the one by then: a refiner may have taken over
            stack.callback(self._forget)
            stack.callback(lambda: self._branches.clear())
            stack.callback(self._unwatch)
            self._denoiser.begin()  # may refuse: another extension's script may have run after ours
            self._deltas.forget()
            self._in_place = dict(self._expected) if self._denoiser.has_merged() else {}
            self._held = layers
            self._watch_over(self._denoiser.unet)
            yield

    def _forget(self) -> None:
        self._held = None
        self._in_place = {}

    def apply(self, shares: Mapping[str, LayerShares]) -> None:
        """Let each layer apply the cast by these shares."""
        self._put(self._regions.decide(shares))
        self._branch(shares)

    @torch.inference_mode()
    def _put(self, parameters: Sequence[str]) -> None:
        for name in parameters:
            regions = self._regions_of(name, self._regions)
            if self._in_place.get(name) != regions:
                self._denoiser.put(name, regions)
                self._in_place[name] = regions

    def _branch(self, layers: Iterable[str]) -> None:
        for name in layers:
            if name in self._layers:
                self._branches.put(self._layers[name], self._regions.shares[name])
        self._deltas.forget()

    # --- A model that changes in the middle of a pass ---------------------------------------------------

    @property
    def is_sampling(self) -> bool:
        """Whether a pass is under way."""
        return self._held is not None

    def follow(self, denoiser: PatchedDenoiser, checkpoint: Checkpoint, paths: Sequence[str]) -> Any:
        """The refiner takes over and is not yet loaded: the patcher to be loaded for it.

        ``paths`` are those of the cast's files by now. Layers that the refiner has not, or in another size,
        are left to the host. The shares stay.
        """
        assert self._held is not None, "a pass is under way"
        sizes, shares = self._sizes, self._regions.shares
        self._branches.clear()
        self._denoiser.make_way(denoiser)
        self._watch_over(denoiser.unet)
        if tuple(paths) != self.paths:
            self.paths, self._on_disk = tuple(paths), LayersOnDisk(paths)
        self._attach(denoiser, checkpoint)
        self._layers = {
            name: layer for name, layer in self._layers.items() if sizes.get(name) == self._sizes[name]
        }
        self._regions = Regions(self._layers, len(self.names), shares)
        return self._without(self._held)

    def fail(self, unet: Any, error: KloraError) -> None:
        """Let the next forward of the refiner raise ``error``: where it was found the host swallows it."""
        self._failed = error
        self._watch_over(unet)

    def _watch_over(self, unet: Any) -> None:
        self._unwatch()
        self._watch = unet.model.diffusion_model.register_forward_pre_hook(
            self._before_forward, with_kwargs=True
        )

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    def _before_forward(
        self, _module: Any, arguments: Sequence[Any], keywords: dict[str, Any]
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        if self._failed is not None:
            raise self._failed
        if self._denoiser.was_loaded():
            self._in_place = {}
            self._put(self._regions.decided())
            self._branch(self._regions.shares)
        return arguments, self._branches.tell_rows(arguments, keywords)
