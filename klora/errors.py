"""Errors that reach the user: each is one plain sentence that names the thing and the remedy."""

from __future__ import annotations

_NAME = "K-LoRA"


class KloraError(Exception):
    """Something the user can put right. ``str(error)`` is one line, fit for the UI and the API.

    It begins with K-LoRA, so that a reader among many extensions knows who speaks; ``reason`` is the same
    for places where that has been said already.
    """

    def __init__(self, message: str) -> None:
        text = " ".join(message.split())
        self.reason = text.removeprefix(f"{_NAME}: ")
        super().__init__(text if text.startswith(_NAME) else f"{_NAME}: {text}")


class SettingsError(KloraError):
    """A setting has an unknown name or a value out of range."""


class PairError(KloraError):
    """The two LoRAs cannot be fused: one is missing, or they share no layer, or the base models differ."""


class HostError(KloraError):
    """The WebUI or pipeline lacks something that the fusion needs."""


class LoraFileError(KloraError):
    """A LoRA file cannot be used.

    Attributes ``file``, ``layer`` and ``defect`` say where; ``str(error)`` holds them all in one line.
    """

    def __init__(
        self, message: str, *, file: str | None = None, layer: str | None = None, defect: str | None = None
    ) -> None:
        super().__init__(message)
        self.file = file
        self.layer = layer
        self.defect = defect
