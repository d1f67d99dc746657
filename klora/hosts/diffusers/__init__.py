"""Pipelines of the diffusers library: ``with klora.fuse(pipe, content, style): pipe(...)``."""

from klora.hosts.diffusers.fuse import TimedLora, add_timed, fuse

__all__ = ["TimedLora", "add_timed", "fuse"]
