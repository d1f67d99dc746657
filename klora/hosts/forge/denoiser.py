"""Forge: the loader merges patches into the weights when the denoiser is loaded for a pass, or hands a layer
the list of its patches, which it then applies in each forward.

A clone of the patcher without the patches of the cast, or with those of the shares that a pass begins with,
withholds what would be merged. Where the weight is
quantised, or the host applies patches in each forward, a layer gets the list by the shares.
"""

from __future__ import annotations

import importlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from klora.hosts.forge import tables
from klora.hosts.forge.online import SwappedLists, on_device
from klora.hosts.forge_family import (
    CastPatches,
    MemberShares,
    PatchedDenoiser,
    Region,
    Strengths,
    assembled,
    is_packed,
)

#: The name under which the host finds, for the time of a pass, how rows with different shares are made.
_BY_ROWS = "K-LoRA by rows"


class ForgeDenoiser(PatchedDenoiser):
    """A denoiser with a table of patches by file and a loader that merges them."""

    tells_of_loading = True

    def __init__(self, unet: Any, paths: Sequence[str]) -> None:
        table = tables.whole(unet.lora_patches)
        online, cast = tables.online(unet, table), tables.of_files(table, *paths)
        owns = [tables.by_parameter(table, tables.of_files(table, path)) for path in paths]
        strengths = Strengths(self.added)
        super().__init__(unet, CastPatches(tables.by_parameter(table, table), owns, strengths))
        self._table = table
        self._paths = tuple(paths)
        self._merged_cast = cast - online
        self._shown: tuple[tables.Identifier, ...] = ()
        # In each forward the cast is applied by its shares, and whatever else the host does not merge.
        self._listed = CastPatches(tables.by_parameter(table, online | cast), owns, strengths)
        self._on_the_fly = set(tables.by_parameter(table, online & cast))
        self._lists = SwappedLists(unet.model)
        self._loader = unet.model.lora_loader
        self._loaded: str | None = None
        self._functions = importlib.import_module("backend.patcher.lora")
        # As in ersatzForge; Forge copies by itself, and a second copy would cost in each forward.
        nothing = torch.zeros(1, 1)
        self._is_in_place = (
            self._functions.merge_lora_to_weight([], nothing, "K-LoRA", nothing.dtype) is nothing
        )

    def backup(self, name: str) -> Tensor | None:
        """The loader keeps what was there before its merge."""
        found: Tensor | None = self._loader.backup.get(name)
        return found

    def unpacked(self, weight: Tensor) -> Tensor:
        """The host's own function for any storage."""
        found: Tensor = importlib.import_module("backend.operations_gguf").dequantize_tensor(weight)
        return found

    def merged(self, patches: Sequence[Any], weight: Tensor, name: str) -> Tensor:
        """The host's own function."""
        return self._merged(patches, weight, name, torch.float32)

    def _merged(self, patches: Sequence[Any], weight: Tensor, name: str, dtype: torch.dtype) -> Tensor:
        own = weight.clone() if self._is_in_place else weight
        found: Tensor = self._functions.merge_lora_to_weight(patches, own, name, dtype)
        return found

    def without(self, parameters: Sequence[str], merged: Mapping[str, MemberShares], state: Hashable) -> Any:
        """The host's patcher, or a new one without what the cast would be merged to, or by shares."""
        self._shown = ()
        if not self._merged_cast:
            return self.unet
        instead = {one: self._by_shares(one, merged) for one in self._merged_cast}
        clone = self.unet.clone()
        clone.lora_patches = tables.without(
            self._table, instead, parameters, repr((state, sorted(merged.items())))
        )
        self._shown = tuple(one for one in clone.lora_patches if tables.is_ours(one))
        return clone

    def _by_shares(self, identifier: tables.Identifier, merged: Mapping[str, MemberShares]) -> tables.Entry:
        """An entry of the cast, in the parameters of ``merged``."""
        place = next(place for place, path in enumerate(self._paths) if path in identifier)
        entry = self._table[identifier]
        return {
            name: self.patches.times(entry[name], shares[place], name)
            for name, shares in merged.items()
            if name in entry
        }

    def has_merged(self) -> bool:
        """Whether the loader has merged the entries of our own: it notes their identifiers."""
        return bool(self._shown) and all(str(one) in self._loader.loaded_hash for one in self._shown)

    def is_on_the_fly(self, name: str) -> bool:
        """Whether the host has given the layer a list, or can only take one there."""
        return name in self._on_the_fly or is_packed(self.exchanged.current(name))

    def put_on_the_fly(self, name: str, regions: Sequence[Region]) -> None:
        """Give the layer the list of all patches by the shares, or one that stands for several by rows."""
        device = self.exchanged.current(name).device
        lists = {one.shares: on_device(self._listed.weighted(one.shares, name), device) for one in regions}

        def merged(shares: MemberShares, weight: Tensor) -> Tensor:
            return self._merged(lists[shares], weight, name, weight.dtype)

        def by_rows(weight: Tensor) -> Tensor:
            return assembled(regions, lambda shares: merged(shares, weight))

        is_one = len(lists) == 1
        self._lists.put(
            name, lists[regions[0].shares] if is_one else [[1.0, (_BY_ROWS, by_rows), 1.0, None, None]]
        )

    def begin(self) -> None:
        """Remember what is loaded, and tell the host how rows with different shares are made."""
        self._loaded = self._loader.loaded_hash
        self._functions.extra_weight_calculators[_BY_ROWS] = lambda weight, _, by_rows: by_rows(weight)

    def was_loaded(self) -> bool:
        """Whether the loader has worked since, which puts its own parameters and lists into the model."""
        if self._loader.loaded_hash == self._loaded:
            return False
        self._loaded = self._loader.loaded_hash
        self.exchanged.restore_where_untouched()
        self._lists.restore()
        return True

    def give_back(self) -> None:
        """Parameters and lists, unless the loader has made new ones."""
        if not self.was_loaded():
            self._lists.restore()
            self.exchanged.restore()

    def end(self) -> None:
        """Take our way of making rows out of the host's table too."""
        self._functions.extra_weight_calculators.pop(_BY_ROWS, None)
        self.give_back()
