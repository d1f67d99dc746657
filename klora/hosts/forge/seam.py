"""Forge: the loader merges patches into the weights when the denoiser is loaded for a pass, or hands a layer
the list of its patches, which it then applies in each forward.

What would be merged of the contested patches is withheld, by loading a clone of the denoiser's patcher
without them. While sampling, a contested layer gets a new Parameter, merged by the host's own function from
the clean weight and the patches less the loser's. Where the weight is quantised, or the host applies patches
in each forward, it gets the list less the loser's. The loader never knows, and finds its own objects again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from klora.errors import KloraError, LoraFileError
from klora.files.layer import take_rows
from klora.hosts.forge import patches
from klora.hosts.forge.online import BY_ROWS, SwappedLists, calculator, list_by_rows, on_device
from klora.hosts.forge_family import (
    ContestedLayer,
    ExchangedParameters,
    Losers,
    Regions,
    assembled,
    contested_layers,
    is_gguf,
    refuse_compiled,
)
from klora.weights import LayerView, Winner


@dataclass(frozen=True)
class ForgeFunctions:
    """The host's own arithmetic.

    ``merge``: (patches, weight, name, computation_dtype=) -> a new weight in the weight's dtype.
    ``dequantised``: a weight in any storage, float. ``calculators``: patch type -> how it is merged.
    """

    merge: Callable[..., Tensor]
    dequantised: Callable[[Tensor], Tensor]
    calculators: MutableMapping[str, Any]


class ForgeSeam:
    """The seam for two LoRA files in the patches of a denoiser's patcher, ``unet``."""

    def __init__(
        self,
        unet: Any,
        names: tuple[str, str],
        paths: tuple[str, str],
        functions: ForgeFunctions,
        checkpoint: str | None,
    ) -> None:
        self.content_name, self.style_name = names
        self._paths = paths
        self._functions = functions
        self._checkpoint = checkpoint
        self._held: Sequence[str] | None = None
        self._failed: KloraError | None = None
        self._watch: RemovableHandle | None = None
        self._attach(unet)

    def _attach(self, unet: Any) -> None:
        refuse_compiled(unet.model.diffusion_model, unet.object_patches.values())
        self._unet = unet
        self._patches = patches.whole(unet.lora_patches)
        self._online = patches.online(unet, self._patches)
        content, style = (patches.touched(self._patches, path) for path in self._paths)
        self._layers = contested_layers(unet.model, self._paths, (content, style), gguf=True)
        self._swapped = {
            name for one in self._online if patches.is_of(one, self._paths) for name in self._patches[one]
        }
        self._regions = Regions(self._layers)
        self._exchanged = ExchangedParameters(unet.model, unet.offload_device)
        self._lists = SwappedLists(unet.model)
        self._last_delta: dict[int, tuple[str, Tensor]] = {}
        self._loaded: str | None = None

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

    def _whole_delta(self, which: int, contested: ContestedLayer) -> Tensor:
        lora, layer = (self.content_name, self.style_name)[which], contested.view.name
        base = self._base(contested.weight, contested.needs_base[which])
        own = patches.for_parameter(patches.of_file(self._patches, self._paths[which]), contested.weight)
        try:
            merged = self._functions.merge(own, base, contested.weight, computation_dtype=torch.float32)
        except RuntimeError as error:
            raise LoraFileError(
                f"{lora}: layer {layer} does not fit the loaded checkpoint ({error}); "
                "use a LoRA made for it.",
                file=lora,
                layer=layer,
                defect="shape",
            ) from error
        return merged - base if contested.needs_base[which] else merged

    def _base(self, name: str, is_needed: bool) -> Tensor:
        """The clean weight in fp32, or zeros like it: a quantised weight is unpacked only if it is needed."""
        clean, device = self._clean(name), self._unet.load_device
        if is_needed:
            return self._functions.dequantised(clean).to(device, torch.float32)
        return torch.zeros(clean.shape, device=device)

    def _clean(self, name: str) -> Tensor:
        """The checkpoint's own weight: the host keeps it for what it has merged into."""
        backup: Tensor | None = self._unet.model.lora_loader.backup.get(name)
        return self._exchanged.original(name) if backup is None else backup

    def score_key(self) -> Hashable:
        """Both files as they are on disk, how strong they are applied, and the checkpoint."""
        states = tuple((path, os.stat(path).st_mtime_ns, os.stat(path).st_size) for path in self._paths)
        strengths = tuple(patches.numbers(self._patches, path) for path in self._paths)
        return (self._checkpoint, states, strengths)

    # --- Withholding ----------------------------------------------------------------------------------

    def without(self, layers: Sequence[str]) -> Any:
        """The host's patcher, or a new one without what the pair would be merged to in ``layers``."""
        withheld = self._regions.of_layers(layers)
        pair = {one for one in self._patches if patches.is_of(one, self._paths)}
        merged = pair - self._online
        if not merged:
            return self._unet
        clone = self._unet.clone()
        clone.lora_patches = patches.without(self._patches, merged, withheld)
        return clone

    @contextmanager
    def withheld(self, layers: Sequence[str]) -> Iterator[None]:
        """Exchange Parameters and lists while inside; all of the host's are put back on the way out."""
        self._last_delta = {}
        self._held = layers
        self._loaded = self._unet.model.lora_loader.loaded_hash
        self._functions.calculators[BY_ROWS] = calculator(self._functions.merge)
        self._watch_over(self._unet)
        try:
            yield
        finally:
            self._held = None
            self._unwatch()
            self._give_back()
            self._functions.calculators.pop(BY_ROWS, None)

    def _give_back(self) -> None:
        if self._unet.model.lora_loader.loaded_hash == self._loaded:
            self._exchanged.restore()
            self._lists.restore()
        else:
            self._forget()

    def _forget(self) -> None:
        """The host has loaded the whole model afresh: there is nothing to put back."""
        self._exchanged.forget()
        self._lists.forget()

    # --- A model that changes in the middle of a pass --------------------------------------------------

    @property
    def is_sampling(self) -> bool:
        """Whether a pass is under way."""
        return self._held is not None

    def follow(self, unet: Any, checkpoint: str | None) -> Any:
        """The refiner takes over, and is not yet loaded: the patcher to be loaded in place of ``unet``.

        Layers that the refiner has not, or in another size, are left to the host.
        """
        assert self._held is not None, "a pass is under way"
        sizes = {name: self._size(name) for name in self._layers}
        winners = self._regions.winners
        self._give_back()
        self._watch_over(unet)
        self._attach(unet)
        self._checkpoint = checkpoint
        self._layers = {
            name: one for name, one in self._layers.items() if sizes.get(name) == self._size(name)
        }
        self._regions = Regions(self._layers, winners)
        return self.without(self._held)

    def fail(self, unet: Any, error: KloraError) -> None:
        """Let the next forward of the refiner raise ``error``: where it was found the host swallows it."""
        self._watch_over(unet)
        self._failed = error

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.remove()

    def _watch_over(self, unet: Any) -> None:
        self._unwatch()
        self._watch = unet.model.diffusion_model.register_forward_pre_hook(self._before_forward)

    def _size(self, layer: str) -> torch.Size:
        return self._clean(self._layers[layer].weight).shape

    def _before_forward(self, *_arguments: Any) -> None:
        """Apply all winners again where the host has loaded the model since, or has loaded another."""
        if self._failed is not None:
            raise self._failed
        loaded = self._unet.model.lora_loader.loaded_hash
        if loaded != self._loaded:
            self._forget()
            self._loaded = loaded
            self._apply(self._regions.decided())

    # --- Applying -------------------------------------------------------------------------------------

    def apply(self, winners: Mapping[str, Winner]) -> None:
        """Let each layer do with everything but the loser."""
        self._apply(self._regions.decide(winners))

    @torch.inference_mode()
    def _apply(self, parameters: Sequence[str]) -> None:
        for name in parameters:
            current = self._exchanged.current(name)
            regions = self._regions.of_parameter(name, current.shape[0])
            if name in self._swapped or is_gguf(current):
                self._lists.put(name, list_by_rows(regions, self._listed(name, current.device)))
            else:
                clean = self._clean(name).to(current.device)
                self._exchanged.put(name, assembled(regions, self._merged(name, clean)))

    def _merged(self, name: str, clean: Tensor) -> Callable[[Losers], Tensor]:
        def merged(losers: Losers) -> Tensor:
            found = patches.for_parameter(self._patches, name, skipped=self._losing(losers))
            return self._functions.merge(found, clean, name, computation_dtype=torch.float32)

        return merged

    def _listed(self, name: str, device: torch.device) -> Callable[[Losers], list[Any]]:
        """What the pair's winners do, and others that the host applies on the fly: the rest is merged."""

        def listed(losers: Losers) -> list[Any]:
            taken = {
                identifier: entry
                for identifier, entry in self._patches.items()
                if identifier in self._online or patches.is_of(identifier, self._paths)
            }
            found = patches.for_parameter(taken, name, skipped=self._losing(losers))
            return [on_device(one, device) for one in found]

        return listed

    def _losing(self, losers: Losers) -> tuple[str, ...]:
        return tuple(self._paths[place] for place in losers)
