"""Which rows of A1111's batches belong to the unconditional pass.

Its CFG denoiser puts the conditional rows first, as many for a picture as its prompt has parts joined by AND,
and the unconditional ones after them. It runs them through the UNet in one call or in several, always in that
order, and may leave the last ones out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from klora.weights.branch import BatchRows


@contextmanager
def telling_rows(
    denoiser: nn.Module, unet: nn.Module, rows: BatchRows, before_forward: Callable[[], None]
) -> Iterator[None]:
    """While inside, tell ``rows`` before each forward of ``unet``; ``denoiser`` is the host's CFG module.

    ``before_forward`` is called at the same moments.
    """
    conditional, done = 0, 0

    def before_denoiser(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        nonlocal conditional, done
        told = keywords["cond"] if "cond" in keywords else arguments[3]
        conditional, done = sum(len(parts) for parts in told.batch), 0

    def before_unet(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        nonlocal done
        batch = int((arguments[0] if arguments else keywords["x"]).shape[0])
        rows.tell(batch, ((max(0, conditional - done), batch),))
        done += batch
        before_forward()

    handles = (
        denoiser.register_forward_pre_hook(before_denoiser, with_kwargs=True),
        unet.register_forward_pre_hook(before_unet, with_kwargs=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
