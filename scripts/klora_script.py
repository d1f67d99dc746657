"""K-LoRA: fuse a subject LoRA and a style LoRA. The WebUI loads this file; the work is in ``klora/``."""

from klora.hosts.webui.script import KLoraCompare, KLoraScript, register  # noqa: F401 - what the WebUI looks for

register()
