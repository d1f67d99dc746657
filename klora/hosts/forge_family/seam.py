"""The seam of the Forge family: what of a patcher's patches is contested, scored, withheld and put in.

The host is shown a patcher without the contested patches before it loads the denoiser for a pass. While
sampling, a contested parameter is a new one, merged by the host's own functions from the clean weight and
all patches but the loser's; where the host applies LoRAs in each forward, that forward is told instead. The
host's own objects are never written into, and all are put back.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from klora.errors import KloraError
from klora.files.layer import take_rows
from klora.hosts.common.checks import does_not_fit
from klora.hosts.forge_family.denoiser import PatchedDenoiser
from klora.hosts.forge_family.layers import ContestedLayer, contested_layers
from klora.hosts.forge_family.regions import Regions
from klora.hosts.forge_family.storage import shape_of
from klora.weights import LayerView, Winner


class FamilySeam:
    """The seam for two LoRA files, by path, in the patches of a denoiser.

    Raises `HostError` if its weights cannot be exchanged.
    """

    def __init__(
        self,
        names: tuple[str, str],
        paths: tuple[str, str],
        denoiser: PatchedDenoiser,
        checkpoint: str | None,
    ) -> None:
        self.content_name, self.style_name = names
        self.paths = paths
        self._held: Sequence[str] | None = None
        self._failed: KloraError | None = None
        self._watch: RemovableHandle | None = None
        self._attach(denoiser, checkpoint)

    def _attach(self, denoiser: PatchedDenoiser, checkpoint: str | None) -> None:
        denoiser.refuse()
        self._denoiser = denoiser
        self._checkpoint = checkpoint
        model, touched = denoiser.unet.model, denoiser.patches.touched
        self._layers = contested_layers(model, self.paths, touched)
        self._sizes = {name: shape_of(denoiser.clean(one.weight)) for name, one in self._layers.items()}
        self._regions = Regions(self._layers)
        self._last_delta: dict[int, tuple[str, Tensor]] = {}

    # --- Scoring --------------------------------------------------------------------------------------

    def shared_layers(self) -> Sequence[LayerView]:
        """The denoiser's linears and convolutions that both files change, in forward order."""
        return [one.view for one in self._layers.values()]

    def deltas(self, layer: str) -> tuple[Tensor, Tensor]:
        """Both dW in fp32, as the host merges them."""
        return self._delta(0, layer), self._delta(1, layer)

    def _delta(self, which: int, layer: str) -> Tensor:
        contested = self._layers[layer]
        name, found = self._last_delta.get(which, ("", None))
        if found is None or name != contested.weight:  # q, k and v of one fused weight follow each other
            found = self._whole_delta(which, contested)
            self._last_delta[which] = (contested.weight, found)
        return found if contested.rows is None else take_rows(found, contested.rows)

    @torch.inference_mode()
    def _whole_delta(self, which: int, contested: ContestedLayer) -> Tensor:
        denoiser, weight = self._denoiser, contested.weight
        base = denoiser.base(weight, contested.needs_base[which])
        try:
            merged = denoiser.merged(denoiser.patches.own(which, weight), base, weight)
        except RuntimeError as error:
            name = (self.content_name, self.style_name)[which]
            raise does_not_fit(name, contested.view.name, str(error)) from error
        return merged - base if contested.needs_base[which] else merged

    def score_key(self) -> Hashable:
        """Both files as they are on disk, how strong they are applied, and the checkpoint."""
        states = tuple((path, os.stat(path).st_mtime_ns, os.stat(path).st_size) for path in self.paths)
        return (self._checkpoint, states, *map(self._denoiser.patches.strengths, (0, 1)))

    # --- Withholding and applying -----------------------------------------------------------------------

    def without(self, layers: Sequence[str]) -> Any:
        """The patcher that the host is to load for a pass in which ``layers`` are contested."""
        return self._denoiser.without(self._regions.of_layers(layers))

    @contextmanager
    def withheld(self, layers: Sequence[str]) -> Iterator[None]:
        """Exchange what is the host's while inside; all of it is put back on the way out."""
        self._denoiser.begin()  # may refuse: another extension's script may have run after ours
        self._last_delta = {}
        self._held = layers
        self._watch_over(self._denoiser.unet)
        try:
            yield
        finally:
            self._held = None
            self._unwatch()
            self._denoiser.end()

    def apply(self, winners: Mapping[str, Winner]) -> None:
        """Let each layer do with everything but the loser."""
        self._put(self._regions.decide(winners))

    @torch.inference_mode()
    def _put(self, parameters: Sequence[str]) -> None:
        for name in parameters:
            height = shape_of(self._denoiser.exchanged.current(name))[0]
            self._denoiser.put(name, self._regions.of_parameter(name, height))

    # --- A model that changes in the middle of a pass ---------------------------------------------------

    @property
    def is_sampling(self) -> bool:
        """Whether a pass is under way."""
        return self._held is not None

    def follow(self, denoiser: PatchedDenoiser, checkpoint: str | None) -> Any:
        """The refiner takes over and is not yet loaded: the patcher to be loaded for it.

        Layers that the refiner has not, or in another size, are left to the host. The winners stay.
        """
        assert self._held is not None, "a pass is under way"
        sizes, winners = self._sizes, self._regions.winners
        self._denoiser.make_way(denoiser)
        self._watch_over(denoiser.unet)
        self._attach(denoiser, checkpoint)
        self._layers = {
            name: one for name, one in self._layers.items() if sizes.get(name) == self._sizes[name]
        }
        self._regions = Regions(self._layers, winners)
        return self.without(self._held)

    def fail(self, unet: Any, error: KloraError) -> None:
        """Let the next forward of the refiner raise ``error``: where it was found the host swallows it."""
        self._failed = error
        self._watch_over(unet)

    def _watch_over(self, unet: Any) -> None:
        self._unwatch()
        self._watch = unet.model.diffusion_model.register_forward_pre_hook(self._before_forward)

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    def _before_forward(self, *_arguments: Any) -> None:
        if self._failed is not None:
            raise self._failed
        if self._denoiser.was_loaded():
            self._put(self._regions.decided())
