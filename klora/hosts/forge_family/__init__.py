"""What the adapters of the Forge family share: they differ in who merges, not in what a layer is."""

from klora.hosts.forge_family.compiled import refuse_compiled
from klora.hosts.forge_family.denoiser import PatchedDenoiser
from klora.hosts.forge_family.host import FamilyHost
from klora.hosts.forge_family.layers import contested_layers
from klora.hosts.forge_family.pair_patches import PairPatches, Patch, Patches
from klora.hosts.forge_family.regions import Losers, Region, assembled
from klora.hosts.forge_family.storage import is_packed

__all__ = [
    "FamilyHost",
    "Losers",
    "PairPatches",
    "Patch",
    "PatchedDenoiser",
    "Patches",
    "Region",
    "assembled",
    "contested_layers",
    "is_packed",
    "refuse_compiled",
]
