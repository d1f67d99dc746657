"""Forge Neo and reForge: the WebUIs whose denoiser is patched by a patcher with ``patches_uuid``."""

from klora.hosts.model_patcher.host import ModelPatcherHost

__all__ = ["ModelPatcherHost"]
