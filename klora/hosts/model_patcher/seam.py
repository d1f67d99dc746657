"""Forge Neo and reForge: a patcher merges all its patches into the weights when it is loaded for a pass.

So the denoiser is loaded through a clone that has no patches at all on the contested parameters; whatever
the host unloads and reloads, it finds nothing to merge there. While sampling, a contested parameter is a new
one, made by the host's own patcher from the clean weight and the patches less the loser's. Where the host
applies patches on the fly, it calls a function of ours for the layer instead, which knows the winner.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from klora.errors import KloraError, LoraFileError
from klora.files.layer import take_rows
from klora.hosts.forge_family import (
    ContestedLayer,
    ExchangedParameters,
    Losers,
    Region,
    Regions,
    assembled,
    contested_layers,
)
from klora.hosts.model_patcher import files
from klora.hosts.model_patcher.checks import refuse
from klora.hosts.model_patcher.files import Own
from klora.weights import LayerView, Winner

#: The host's function: (patches, weight, name, computation dtype) -> the weight, merged in place.
Merge = Callable[..., Tensor]


class OnTheFly:
    """What the host calls with a layer's weight in each forward: ``merged`` adds all but the losers to it."""

    def __init__(self, merged: Callable[[Losers, Tensor], Tensor]) -> None:
        self.regions: tuple[Region, ...] = ()
        self._merged = merged

    def __call__(self, weight: Tensor) -> Tensor:
        if not self.regions:
            return weight
        # The merge is in place, and the host hands over the parameter itself where nothing has to be cast.
        is_free = len(self.regions) == 1 and not isinstance(weight, nn.Parameter)
        return assembled(
            self.regions, lambda losers: self._merged(losers, weight if is_free else weight.clone())
        )


class ModelPatcherSeam:
    """The seam for two LoRA files in the patches of a denoiser's patcher, ``unet``.

    ``owns`` are the patches that each of the two files put there.
    """

    def __init__(
        self,
        unet: Any,
        names: tuple[str, str],
        paths: tuple[str, str],
        owns: tuple[Own, Own],
        merge: Merge,
        checkpoint: str | None,
    ) -> None:
        self.content_name, self.style_name = names
        self.paths = paths
        self._merge = merge
        self._checkpoint = checkpoint
        self.is_sampling = False
        self._held: Sequence[str] = ()
        self._failed: KloraError | None = None
        self._watch: RemovableHandle | None = None
        self._attach(unet, owns)

    def _attach(self, unet: Any, owns: tuple[Own, Own]) -> None:
        refuse(unet)
        self._unet = unet
        self._owns = owns
        is_on_the_fly = getattr(unet, "use_online_lora", lambda _name: False)
        touched = (set(owns[0]) & set(unet.patches), set(owns[1]) & set(unet.patches))
        on_the_fly = {name for name in touched[0] | touched[1] if is_on_the_fly(name)}
        self._layers = contested_layers(unet.model, self.paths, touched, gguf=bool(on_the_fly))
        self._regions = Regions(self._layers)
        self._branches = {name: OnTheFly(self._merging(name)) for name in on_the_fly}
        self._exchanged = ExchangedParameters(unet.model, unet.offload_device)
        self._sizes = {name: tuple(self._clean(one.weight).shape) for name, one in self._layers.items()}
        self._merger = _merger(unet)
        self._last_delta: dict[int, tuple[str, Tensor]] = {}

    # --- Scoring --------------------------------------------------------------------------------------

    def shared_layers(self) -> Sequence[LayerView]:
        """The denoiser's linears and convolutions that both files change, in forward order."""
        return [one.view for one in self._layers.values()]

    def deltas(self, layer: str) -> tuple[Tensor, Tensor]:
        """Both dW in fp32, from the files' factors, as the host merges them."""
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
        name, layer = contested.weight, contested.view.name
        clean, device = self._clean(name), self._unet.load_device
        base = torch.zeros(tuple(clean.shape), device=device)
        if contested.needs_base[which]:
            base = files.unpacked(clean).to(device, torch.float32)
        own = files.of(self._owns[which], self._unet.patches, name)
        try:
            return self._merge(own, base.clone(), name, torch.float32) - base
        except RuntimeError as error:
            lora = (self.content_name, self.style_name)[which]
            raise LoraFileError(
                f"{lora}: layer {layer} does not fit the loaded checkpoint ({error}); "
                "use a LoRA made for it.",
                file=lora,
                layer=layer,
                defect="shape",
            ) from error

    def _clean(self, name: str) -> Tensor:
        """The checkpoint's own weight: the host keeps it for what it has merged into."""
        backup = self._unet.backup.get(name)
        clean: Tensor = self._exchanged.original(name) if backup is None else backup.weight
        return clean

    def score_key(self) -> Hashable:
        """Both files as they are on disk, how strong they are applied, and the checkpoint."""
        states = tuple((path, os.stat(path).st_mtime_ns, os.stat(path).st_size) for path in self.paths)
        strengths = tuple(files.numbers(own, self._unet.patches) for own in self._owns)
        return (self._checkpoint, states, strengths)

    # --- Withholding ----------------------------------------------------------------------------------

    def without(self, layers: Sequence[str]) -> Any:
        """A new patcher like the host's, but without any patch on the parameters of ``layers``."""
        clone = self._unet.clone()
        for name in self._regions.of_layers(layers):
            clone.patches.pop(name, None)
            if name in self._branches:
                clone.add_weight_wrapper(name, self._branches[name])
        clone.patches_uuid = uuid.uuid4()
        return clone

    @contextmanager
    def withheld(self, layers: Sequence[str]) -> Iterator[None]:
        """Exchange parameters while inside; every one of the host's is put back on the way out."""
        refuse(self._unet)  # another extension's script may have run after ours
        self._last_delta = {}
        self._held = layers
        self.is_sampling = True
        try:
            yield
        finally:
            self.is_sampling = False
            self._unwatch()
            self._give_back()

    def _give_back(self) -> None:
        try:
            self._exchanged.restore()
        except AttributeError:
            self._exchanged.forget()  # the host has taken the model apart, as reForge does for a refiner

    # --- A model that changes in the middle of a pass --------------------------------------------------

    def follow(self, unet: Any, owns: tuple[Own, Own], checkpoint: str | None) -> Any:
        """The refiner takes over and is not yet loaded: the patcher to be loaded in place of ``unet``.

        Layers that the refiner has not, or in another size, are left to the host. The winners stay.
        """
        sizes, winners = self._sizes, self._regions.winners
        if unet.model is self._unet.model:
            self._exchanged.forget()  # the host has read the refiner's weights into the same model
        else:
            self._give_back()
        self._attach(unet, owns)
        self._checkpoint = checkpoint
        layers = {name: one for name, one in self._layers.items() if sizes.get(name) == self._sizes[name]}
        self._layers = layers
        self._regions = Regions(layers, winners)
        self._before_next_forward(unet)
        return self.without(self._held)

    def fail(self, unet: Any, error: KloraError) -> None:
        """Let the refiner's next forward raise ``error``: where it was found the host swallows it."""
        self._failed = error
        self._before_next_forward(unet)

    def _before_next_forward(self, unet: Any) -> None:
        """The host loads the refiner before it calls it: then the winners so far can be applied to it."""

        def before_forward(*_arguments: Any) -> None:
            self._unwatch()
            if self._failed is not None:
                raise self._failed
            self._apply(self._regions.decided())

        self._unwatch()
        self._watch = unet.model.diffusion_model.register_forward_pre_hook(before_forward)

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    # --- Applying -------------------------------------------------------------------------------------

    def apply(self, winners: Mapping[str, Winner]) -> None:
        """Give each layer everything but the loser."""
        self._apply(self._regions.decide(winners))

    @torch.inference_mode()
    def _apply(self, parameters: Sequence[str]) -> None:
        for name in parameters:
            current = self._exchanged.current(name)
            regions = self._regions.of_parameter(name, current.shape[0])
            if name in self._branches:
                self._branches[name].regions = regions
                continue
            clean = self._clean(name).to(current.device)
            self._exchanged.put(name, assembled(regions, self._making(name, clean)).to(current.device))

    def _making(self, name: str, clean: Tensor) -> Callable[[Losers], Tensor]:
        """Merged by the host's own patcher, so that type, device and rounding are the host's."""

        def made(losers: Losers) -> Tensor:
            self._exchanged.put(name, clean)
            found = files.without([self._owns[one] for one in losers], self._unet.patches, name)
            if not found:
                return clean.clone()
            self._merger.backup, self._merger.patches = {}, {name: found}
            self._merger.patch_weight_to_device(name, device_to=self._unet.load_device)
            return self._exchanged.current(name)

        return made

    def _merging(self, name: str) -> Callable[[Losers, Tensor], Tensor]:
        def merged(losers: Losers, weight: Tensor) -> Tensor:
            found = files.without([self._owns[one] for one in losers], self._unet.patches, name)
            return self._merge(found, weight, name, weight.dtype)

        return merged


def _merger(unet: Any) -> Any:
    """A patcher of the host's kind for single parameters. It shares nothing with the one that is loaded."""
    merger = unet.clone()
    merger.weight_inplace_update = False
    merger.object_patches_backup = {}
    if hasattr(merger, "pinned"):
        merger.pinned = set()
    return merger
