"""A compiled denoiser has the weights of its first calls built in: what wins later would not show."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from klora.errors import HostError


def refuse_compiled(denoiser: nn.Module, replacements: Iterable[Any] = ()) -> None:
    """Raise `HostError` if ``denoiser``, a module in it, or one that an extension puts in its place is
    compiled."""
    modules = [*denoiser.modules(), *replacements]
    if any(_is_compiled(one) for one in modules):
        raise HostError(
            "K-LoRA cannot change weights of a model that torch.compile has compiled; switch the compilation "
            "off and reload the checkpoint, or untick K-LoRA."
        )


def _is_compiled(module: Any) -> bool:
    # torch.compile(module) wraps it; module.compile() leaves it and notes the compiled call; a compiled
    # function in place of ``forward`` remembers the original.
    return (
        hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(getattr(module, "forward", None), "_torchdynamo_orig_callable")
    )
