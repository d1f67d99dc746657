"""AUTOMATIC1111's WebUI."""

from klora.hosts.a1111.host import A1111Host

__all__ = ["A1111Host"]
