"""What the adapters of the Forge family share: they differ in who merges, not in what a layer is."""

from klora.hosts.forge_family.layers import ContestedLayer, contested_layers
from klora.hosts.forge_family.parameters import ExchangedParameters

__all__ = ["ContestedLayer", "ExchangedParameters", "contested_layers"]
