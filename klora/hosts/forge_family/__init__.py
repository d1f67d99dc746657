"""What the adapters of the Forge family share: they differ in who merges, not in what a layer is."""

from klora.hosts.forge_family.cast_patches import CastPatches, MemberShares, Patches
from klora.hosts.forge_family.compiled import refuse_compiled
from klora.hosts.forge_family.denoiser import PatchedDenoiser
from klora.hosts.forge_family.host import FamilyHost
from klora.hosts.forge_family.layers import changed_layers
from klora.hosts.forge_family.regions import Region, assembled
from klora.hosts.forge_family.storage import is_packed
from klora.hosts.forge_family.strength import Patch, Strengths

__all__ = [
    "CastPatches",
    "FamilyHost",
    "MemberShares",
    "Patch",
    "PatchedDenoiser",
    "Patches",
    "Region",
    "Strengths",
    "assembled",
    "changed_layers",
    "is_packed",
    "refuse_compiled",
]
