"""What the adapters of the Forge family share: they differ in who merges, not in what a layer is."""

from klora.hosts.forge_family.compiled import refuse_compiled
from klora.hosts.forge_family.layers import ContestedLayer, contested_layers, is_gguf
from klora.hosts.forge_family.parameters import ExchangedParameters
from klora.hosts.forge_family.regions import Losers, Region, Regions, assembled

__all__ = [
    "ContestedLayer",
    "ExchangedParameters",
    "Losers",
    "Region",
    "Regions",
    "assembled",
    "contested_layers",
    "is_gguf",
    "refuse_compiled",
]
