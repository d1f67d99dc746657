"""Which rows of A1111's batches belong to the unconditional pass.

Its CFG denoiser puts the conditional rows first, as many for a picture as its prompt has parts joined by AND,
and the unconditional ones after them. It runs them through the UNet in one call or in several, always in that
order, and may leave the last ones out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from klora.hosts.common.stand_in import stand_in
from klora.weights.branch import BatchRows


@contextmanager
def telling_rows(
    denoiser: nn.Module,
    unet: Callable[[], nn.Module],
    rows: BatchRows,
    before_forward: Callable[[], None],
    after_switch: Callable[[], None],
) -> Iterator[None]:
    """While inside, tell ``rows`` before each forward of ``unet``; ``denoiser`` is the host's CFG module.

    ``before_forward`` is called at the same moments, and ``after_switch`` when a refiner has taken over, from
    when on ``unet`` may be another.
    """
    conditional, done = 0, 0
    watch: RemovableHandle | None = None

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

    def watch_over_unet() -> None:
        nonlocal watch
        if watch is not None:
            watch.remove()
        watch = unet().register_forward_pre_hook(before_unet, with_kwargs=True)

    def switched() -> None:
        after_switch()
        watch_over_unet()

    handle = denoiser.register_forward_pre_hook(before_denoiser, with_kwargs=True)
    try:
        watch_over_unet()
        with _telling_of_switches(denoiser, switched):
            yield
    finally:
        handle.remove()
        if watch is not None:
            watch.remove()


def _telling_of_switches(denoiser: Any, switched: Callable[[], None]) -> AbstractContextManager[None]:
    """Call ``switched`` after the host has told its CFG module that another model is loaded."""
    original = getattr(denoiser, "update_inner_model", None)
    if original is None:
        return nullcontext()

    def update(*arguments: Any, **keywords: Any) -> Any:
        result = original(*arguments, **keywords)
        switched()
        return result

    return stand_in(denoiser, "update_inner_model", update)
