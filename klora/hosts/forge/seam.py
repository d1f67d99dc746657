"""Forge: the loader merges all patches into the weights when the denoiser is loaded for a pass.

So the contested patches are withheld from it by loading a clone of the denoiser's patcher without them;
while sampling, a contested layer gets a new Parameter, merged by the host's own function from the clean
weight and the patches less the loser's. The loader never knows, and finds its own Parameters afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from klora.errors import LoraFileError
from klora.hosts.forge import patches
from klora.hosts.forge_family import ExchangedParameters, contested_layers
from klora.weights import LayerView, Winner

#: The host's function: (patches, weight, name, computation dtype) -> merged weight in the weight's dtype.
Merge = Callable[..., Tensor]


class ForgeSeam:
    """The seam for two LoRA files in the patches of a denoiser's patcher, ``unet``."""

    def __init__(
        self, unet: Any, names: tuple[str, str], paths: tuple[str, str], merge: Merge, checkpoint: str | None
    ) -> None:
        self.content_name, self.style_name = names
        self._unet = unet
        self._paths = paths
        self._merge = merge
        self._checkpoint = checkpoint
        self._patches = patches.whole(unet.lora_patches)
        touched = (patches.touched(self._patches, paths[0]), patches.touched(self._patches, paths[1]))
        self._layers = contested_layers(unet.model, paths, touched)
        self._exchanged = ExchangedParameters(unet.model, unet.offload_device)

    def shared_layers(self) -> Sequence[LayerView]:
        """The denoiser's linears and convolutions that both files change, in forward order."""
        return [one.view for one in self._layers.values()]

    def deltas(self, layer: str) -> tuple[Tensor, Tensor]:
        """Both dW in fp32, as the host merges them."""
        return self._delta(0, layer), self._delta(1, layer)

    def _delta(self, which: int, layer: str) -> Tensor:
        contested = self._layers[layer]
        name, lora = contested.weight, (self.content_name, self.style_name)[which]
        clean = self._clean(name).to(self._unet.load_device, torch.float32)
        base = clean if contested.needs_base[which] else torch.zeros_like(clean)
        own = patches.for_parameter(patches.of_file(self._patches, self._paths[which]), name)
        try:
            merged = self._merge(own, base, name, computation_dtype=torch.float32)
        except RuntimeError as error:
            raise LoraFileError(
                f"{lora}: layer {layer} does not fit the loaded checkpoint ({error}); "
                "use a LoRA made for it.",
                file=lora,
                layer=layer,
                defect="shape",
            ) from error
        return merged - base

    def _clean(self, name: str) -> Tensor:
        """The checkpoint's own weight: the host keeps it for what it has merged into."""
        backup: Tensor | None = self._unet.model.lora_loader.backup.get(name)
        return self._exchanged.original(name) if backup is None else backup

    def score_key(self) -> Hashable:
        """Both files as they are on disk, how strong they are applied, and the checkpoint."""
        states = tuple((path, os.stat(path).st_mtime_ns, os.stat(path).st_size) for path in self._paths)
        strengths = tuple(patches.numbers(self._patches, path) for path in self._paths)
        return (self._checkpoint, states, strengths)

    def without(self, layers: Sequence[str]) -> Any:
        """A new patcher like the host's, but without what the pair does to ``layers``."""
        withheld = {name for layer in layers for name in self._layers[layer].parameters}
        clone = self._unet.clone()
        clone.lora_patches = patches.without(self._patches, self._paths, withheld)
        return clone

    @contextmanager
    def withheld(self, layers: Sequence[str]) -> Iterator[None]:
        """Exchange Parameters while inside; every one of the host's is put back on the way out."""
        loader = self._unet.model.lora_loader
        merged = loader.loaded_hash
        try:
            yield
        finally:
            if loader.loaded_hash == merged:
                self._exchanged.restore()
            else:
                self._exchanged.forget()  # the host has restored and merged the whole model in between

    def apply(self, winners: Mapping[str, Winner]) -> None:
        """Give each layer its clean weight with everything merged but the loser."""
        content, style = self._paths
        losers = {
            Winner.CONTENT: (style,),
            Winner.STYLE: (content,),
            Winner.NONE: (content, style),
            Winner.BOTH: (),
        }
        for layer, winner in winners.items():
            for name in self._layers[layer].parameters:
                self._apply(name, losers[winner])

    def _apply(self, name: str, losers: Sequence[str]) -> None:
        found = patches.for_parameter(self._patches, name, skipped=losers)
        clean = self._clean(name).to(self._exchanged.current(name).device)
        self._exchanged.put(name, self._merge(found, clean, name, computation_dtype=torch.float32))
