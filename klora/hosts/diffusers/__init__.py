"""Pipelines of the diffusers library: ``with klora.fuse(pipe, content, style): pipe(...)``."""

from klora.hosts.diffusers.fuse import fuse

__all__ = ["fuse"]
