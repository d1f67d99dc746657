"""Lets a Forge pack weights into nf4 on a CPU: it knows CUDA alone, bitsandbytes has kernels for both."""

from __future__ import annotations

from typing import Any

import torch


def install(kind: Any) -> None:
    """From now on the host's ``kind`` of parameter takes the CPU for the device on which it is packed."""
    original = kind.to

    def to(self: Any, *arguments: Any, **keywords: Any) -> Any:
        known = {name: value for name, value in keywords.items() if name != "copy"}  # which Forge Neo adds
        device = torch._C._nn._parse_to(*arguments, **known)[0]
        if device is not None and not self.bnb_quantized:
            return self._quantize(device)
        return original(self, *arguments, **keywords)

    kind.to = to
    kind.cuda = lambda self: self.to("cpu")


try:
    from backend.operations_bnb import ForgeParams4bit as _ForgeParams4bit
except ImportError:  # another WebUI, or one without bitsandbytes
    pass
else:
    if not torch.cuda.is_available():
        install(_ForgeParams4bit)
