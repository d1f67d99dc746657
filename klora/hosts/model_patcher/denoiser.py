"""Forge Neo and reForge: a patcher merges all its patches into the weights when it is loaded for a pass.

So the denoiser is loaded through a clone that has no patches at all on the parameters that are controlled, or
those by the shares of the whole pass; whatever the host unloads and reloads, it finds nothing else to merge
there. The host tells patchers with other patches by a mark, and leaves what it has merged in place for the
next of the same mark. Where the host applies patches on the fly, it calls a function of ours for the layer
instead, which knows the shares.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from klora.hosts.forge_family import (
    CastPatches,
    MemberShares,
    PatchedDenoiser,
    Patches,
    Region,
    Strengths,
    assembled,
    is_packed,
)
from klora.hosts.model_patcher import wrappers
from klora.hosts.model_patcher.checks import refuse

#: The host's function: (patches, weight, name, computation dtype) -> the weight, merged in place.
Merge = Callable[..., Tensor]


#: Where the host notes on the model by which mark it is patched.
_NOTED = "current_weight_patches_uuid"
#: Of which the marks of our patchers are made.
_MARKS = uuid.UUID("6f1c2a3e-8b0d-4c55-9a43-2f4be1d0c7a9")


class OnTheFly:
    """What the host calls with a layer's weight in each forward: ``merged`` adds all by shares to it."""

    #: Newer Forge Neo's own script asks every function for the file that it stands for.
    name = "K-LoRA"

    def __init__(self, merged: Callable[[MemberShares, Tensor], Tensor]) -> None:
        self.regions: Sequence[Region] = ()
        self._merged = merged

    def __call__(self, weight: Tensor) -> Tensor:
        if not self.regions:
            return weight
        # The merge is in place, and the host hands over the parameter itself where nothing has to be cast.
        is_free = len(self.regions) == 1 and not isinstance(weight, nn.Parameter)
        return assembled(
            self.regions, lambda shares: self._merged(shares, weight if is_free else weight.clone())
        )


class ModelPatcherDenoiser(PatchedDenoiser):
    """A denoiser whose patcher holds patches by parameter; ``owns`` are those of the files of the cast."""

    def __init__(self, unet: Any, owns: Sequence[Patches], merge: Merge) -> None:
        super().__init__(unet, CastPatches(wrappers.all_patches(unet), owns, Strengths(self.added)))
        # What is packed is left in place, also where the host would merge.
        on_the_fly = {name for name, parameter in unet.model.named_parameters() if is_packed(parameter)}
        on_the_fly |= wrappers.applied_on_the_fly(unet)
        touched = set().union(*self.patches.touched)
        self._merge = merge
        self._merger = _merger(unet)
        self._functions = {name: OnTheFly(self._merging(name)) for name in on_the_fly & touched}
        self._is_new = True
        self._controlled: Sequence[str] = ()
        self._shown: uuid.UUID | None = None
        self._shown_patches: dict[str, Any] = {}
        self._ahead: Mapping[str, MemberShares] = {}

    def _merging(self, name: str) -> Callable[[MemberShares, Tensor], Tensor]:
        def merged(shares: MemberShares, weight: Tensor) -> Tensor:
            return self._merge(self.patches.weighted(shares, name), weight, name, weight.dtype)

        return merged

    def backup(self, name: str) -> Tensor | None:
        """The patcher keeps what was there before its merge."""
        found = self.unet.backup.get(name)
        return None if found is None else found.weight

    def unpacked(self, weight: Tensor) -> Tensor:
        """The storages know how to unpack themselves."""
        if getattr(weight, "gguf_cls", None) is not None:
            return weight.dequantize_as_pytorch_parameter()  # type: ignore[attr-defined,no-any-return]
        return weight.dequantize() if hasattr(weight, "_qdata") else weight

    def merged(self, patches: Sequence[Any], weight: Tensor, name: str) -> Tensor:
        """The host's own function, on a copy."""
        return self._merge(patches, weight.clone(), name, torch.float32)

    def made(self, patches: Sequence[Any], clean: Tensor, name: str) -> Tensor:
        """Merged by the host's own patcher, so that type, device and rounding are the host's."""
        self.exchanged.put(name, clean)
        if not patches:
            return clean.clone()
        self._merger.backup, self._merger.patches = {}, {name: patches}
        self._merger.patch_weight_to_device(name, device_to=self.unet.load_device)
        return self.exchanged.current(name)

    def without(self, parameters: Sequence[str], merged: Mapping[str, MemberShares], state: Hashable) -> Any:
        """A new patcher like the host's, with no other patches on the parameters than those of the shares."""
        clone = self.unet.clone()
        for name in parameters:
            clone.patches.pop(name, None)
            wrappers.remove_patches(clone, name)
            if name in self._functions:
                clone.add_weight_wrapper(name, self._functions[name])
        for name, shares in merged.items():
            clone.patches[name] = self.patches.weighted(shares, name)
        self._ahead, self._controlled = merged, tuple(parameters)
        self._shown = clone.patches_uuid = self._mark(parameters, merged, state)
        self._shown_patches = clone.patches  # not the patcher, which would live longer for it
        return clone

    def _mark(
        self, parameters: Sequence[str], merged: Mapping[str, MemberShares], state: Hashable
    ) -> uuid.UUID:
        """The same for the same patches on the same patcher; of its own where functions are to be put in."""
        if self._functions:
            return uuid.uuid4()
        # Another extension may have changed strengths in place, under the host's own mark.
        patches = (self.unet.patches_uuid, self.patches.numbers(), state)
        told = (*patches, sorted(parameters), sorted(merged.items()))
        return uuid.uuid5(_MARKS, repr(told))

    def has_merged(self) -> bool:
        """Whether the model does what the patcher of `without` asks for: it notes the mark.

        Where not all of a model is on the device, the host applies what it has not merged in each forward,
        also for a patcher that another extension has made of ours.
        """
        is_partly_off = getattr(self.unet.model, "model_lowvram", False)
        return bool(self._ahead) and (self._is_noted() or is_partly_off)

    def _is_noted(self) -> bool:
        """Whether the patcher of `without`, or one with the same patches, was loaded last."""
        return self._shown is not None and getattr(self.unet.model, _NOTED, None) == self._shown

    def is_on_the_fly(self, name: str) -> bool:
        """Whether the host was given a function of ours for it."""
        return name in self._functions

    def put_on_the_fly(self, name: str, regions: Sequence[Region]) -> None:
        """Tell that function."""
        self._functions[name].regions = regions

    def refuse(self) -> None:
        """Compiled models, and those that apply LoRAs by kernels of their own."""
        refuse(self.unet)

    def begin(self) -> None:
        """What is loaded at the start of a pass needs no shares yet."""
        self.refuse()  # another extension's script may have run since
        self._is_new = False
        if self._is_noted():
            self._correct_offloaded()

    def _correct_offloaded(self) -> None:
        """Where a parameter is not on the device, let each forward apply what our patcher has for it.

        Between two pictures the host takes layers off the device by its own patcher, with all of each LoRA,
        and it leaves them so when it loads ours, whose mark is that of what was loaded last.
        """
        for name in self._controlled:
            if name not in self._shown_patches:
                wrappers.remove_of_offloaded(self.unet.model, name)
            for function in wrappers.of_offloaded(self.unet.model, name):
                function.patches = self._shown_patches

    def put(self, name: str, regions: Sequence[Region]) -> None:
        """As ever; what the host would apply to it in each forward is in it now."""
        if wrappers.remove_of_offloaded(self.unet.model, name):
            setattr(self.unet.model, _NOTED, uuid.uuid4())  # so that all is loaded anew for the next picture
        super().put(name, regions)

    def was_loaded(self) -> bool:
        """Once for a refiner, and where the host has merged anew what it had merged ahead.

        Any other parameter is kept where a model is unloaded and loaded in between.
        """
        was_new, self._is_new = self._is_new, False
        if not any(map(self.exchanged.is_lost, self._ahead)):
            return was_new
        self.exchanged.restore_where_untouched()
        return True

    def give_back(self) -> None:
        """All parameters but those that the host has cleaned since; not to a model that it has taken apart,
        as reForge does for a refiner.
        """
        try:
            self.exchanged.forget_of(filter(self._is_cleaned, self._ahead))
            self.exchanged.restore()
        except AttributeError:
            self.exchanged.forget()

    def _is_cleaned(self, name: str) -> bool:
        """Whether the host has put back the clean weight, its backup, in place of what `put` gave it."""
        return self.exchanged.is_lost(name) and self.backup(name) is None

    def make_way(self, successor: PatchedDenoiser) -> None:
        """Give back, unless the host has read the refiner's weights into the same model."""
        if successor.unet.model is self.unet.model:
            self.exchanged.forget()
        else:
            self.give_back()


def _merger(unet: Any) -> Any:
    """A patcher of the host's kind for single parameters. It shares nothing with the one that is loaded."""
    merger = unet.clone()
    merger.weight_inplace_update = False
    merger.object_patches_backup = {}
    if hasattr(merger, "pinned"):
        merger.pinned = set()
    return merger
