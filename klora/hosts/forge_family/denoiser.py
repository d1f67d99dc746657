"""A loaded denoiser with the host's patches on it: the few questions on which the family's members differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from klora.hosts.forge_family.cast_patches import CastPatches, MemberShares
from klora.hosts.forge_family.compiled import refuse_compiled
from klora.hosts.forge_family.dependence import Dependence
from klora.hosts.forge_family.parameters import ExchangedParameters
from klora.hosts.forge_family.regions import Region, assembled
from klora.hosts.forge_family.storage import from_four_bits, refuse_quantised, shape_of
from klora.hosts.forge_family.strength import Patch


class PatchedDenoiser(ABC):
    """The denoiser of the host's patcher ``unet``, with patches of a cast's files among others."""

    #: Whether `was_loaded` hears of every loading, so that shares which were merged ahead may change.
    tells_of_loading = False

    def __init__(self, unet: Any, patches: CastPatches) -> None:
        self.unet = unet
        self.patches = patches
        self.exchanged = ExchangedParameters(unet.model, unet.offload_device)
        self._dependence = Dependence(self._added_twice)

    # --- What the host knows --------------------------------------------------------------------------

    @abstractmethod
    def backup(self, name: str) -> Tensor | None:
        """The clean weight that the host keeps of a parameter into which it has merged something."""

    @abstractmethod
    def unpacked(self, weight: Tensor) -> Tensor:
        """A weight in a storage of the host's own as numbers."""

    @abstractmethod
    def merged(self, patches: Sequence[Any], weight: Tensor, name: str) -> Tensor:
        """A new tensor in the weight's dtype, merged in fp32; raises RuntimeError if a patch does not fit."""

    def made(self, patches: Sequence[Any], clean: Tensor, name: str) -> Tensor:
        """A new parameter with ``patches`` merged, in the host's storage and rounding."""
        return self.merged(patches, clean, name)

    @abstractmethod
    def without(self, parameters: Sequence[str], merged: Mapping[str, MemberShares], state: Hashable) -> Any:
        """The patcher that the host is to load for a pass.

        It merges nothing of the cast into ``parameters``, or, into those of ``merged``, by these shares.
        ``state`` tells one state of the cast's files from another.
        """

    def has_merged(self) -> bool:
        """Whether what `without` was told to merge by shares is in the loaded model."""
        return False

    # --- LoRAs that the host applies in each forward ----------------------------------------------------

    @abstractmethod
    def is_on_the_fly(self, name: str) -> bool:
        """Whether the parameter stays as it is, as a packed one must: its LoRAs apply in each forward."""

    @abstractmethod
    def put_on_the_fly(self, name: str, regions: Sequence[Region]) -> None:
        """From now on let each forward apply everything by the shares of each region."""

    # --- The course of a pass ---------------------------------------------------------------------------

    def refuse(self) -> None:
        """Raise `HostError` if the weights cannot be exchanged while the denoiser runs."""
        refuse_compiled(self.unet.model.diffusion_model, self.unet.object_patches.values())

    def refuse_storage(self, parameters: Sequence[str]) -> None:
        """Raise `HostError` if one of the parameters can neither be exchanged nor left in place."""
        for name in parameters:
            refuse_quantised(name, self.exchanged.current(name))

    def begin(self) -> None:  # noqa: B027 - most have nothing to do
        """A pass begins; raises `HostError` if the weights cannot be exchanged any more."""

    @abstractmethod
    def was_loaded(self) -> bool:
        """Whether the host has loaded the model since this was last asked, and all shares must go in again.

        Asked before each forward of a pass.
        """

    @abstractmethod
    def give_back(self) -> None:
        """Put back all of the host's that was exchanged, unless the host has already replaced it."""

    def make_way(self, successor: PatchedDenoiser) -> None:
        """Another model takes over in the middle of a pass."""
        self.give_back()

    def end(self) -> None:
        """The pass is over."""
        self.give_back()

    # --- What all members do alike ----------------------------------------------------------------------

    def clean(self, name: str) -> Tensor:
        """The checkpoint's own weight."""
        backup = self.backup(name)
        return self.exchanged.original(name) if backup is None else backup

    def base(self, name: str, is_needed: bool) -> Tensor:
        """The clean weight in fp32, or zeros like it: a quantised weight is unpacked only if it is needed."""
        clean, device = self.clean(name), self.unet.load_device
        if is_needed:
            return self.unpacked(from_four_bits(clean)).to(device, torch.float32)
        return torch.zeros(shape_of(clean), device=device)

    def is_sum_of_others(self, name: str) -> bool:
        """Whether what is not the cast's adds the same to a parameter whatever the cast makes of it."""
        return not any(self._dependence.of(patch, name) for patch in self.patches.others(name))

    def _added_twice(self, patch: Patch, name: str) -> tuple[Tensor, Tensor]:
        base = self.base(name, is_needed=True)
        return self.added(patch, name), self.merged([patch], base, name) - base

    def added(self, patch: Patch, name: str) -> Tensor:
        """What a patch alone makes of a parameter of zeros, in fp32."""
        return self.merged([patch], self.base(name, is_needed=False), name)

    def put(self, name: str, regions: Sequence[Region]) -> None:
        """Let the parameter do with everything, the cast by the shares of each region."""
        if self.is_on_the_fly(name):
            self.put_on_the_fly(name, regions)
            return
        device = self.exchanged.current(name).device
        clean = self.clean(name).to(device)

        def made(shares: MemberShares) -> Tensor:
            return self.made(self.patches.weighted(shares, name), clean, name)

        self.exchanged.put(name, assembled(regions, made).to(device))
