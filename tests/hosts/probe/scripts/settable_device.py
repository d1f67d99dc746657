"""Lets Forge Neo load an image encoder: it tells each model on which device it is, and the transformers that
it asks for let nobody tell it, with K-LoRA or without.
"""

from __future__ import annotations

from typing import Any


def install(kind: Any) -> None:
    """The device of a model of ``kind`` is what it was told to be, or else what it finds itself."""
    found = kind.device.fget

    def device(self: Any) -> Any:
        return self.__dict__.get("_told_device") or found(self)

    def tell(self: Any, told: Any) -> None:
        self.__dict__["_told_device"] = told

    kind.device = property(device, tell)


try:
    from backend.patcher.clipvision import CLIPVisionModelWithProjection as _Encoder
except ImportError:  # another WebUI
    pass
else:
    if _Encoder.device.fset is None:
        install(_Encoder)
