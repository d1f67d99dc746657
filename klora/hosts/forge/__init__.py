"""Forge: the WebUI whose LoRA loader merges patches when the model is loaded for a pass."""

from klora.hosts.forge.host import ForgeHost

__all__ = ["ForgeHost"]
