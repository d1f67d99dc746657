"""Which rows of A1111's batches belong to the unconditional pass.

Its CFG denoiser puts the conditional rows first, as many for a picture as its prompt has parts joined by AND,
and the unconditional ones after them. It gives them to its inner model in one call or in several, always in
that order, and may leave the last ones out. The inner model runs them through the UNet; extensions that cut
the picture into tiles do so for each tile, several tiles in one call (Tiled Diffusion).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from klora.hosts.common.stand_in import stand_in
from klora.weights.branch import BatchRows, Ranges, ranges_of


class Passes:
    """How far the CFG denoiser has come in its rows."""

    def __init__(self) -> None:
        self._conditional, self._done = 0, 0
        self._given: Sequence[bool] | None = None
        self._at = 0

    def begin(self, conditional: int) -> None:
        """The denoiser is called; the first ``conditional`` rows are of the conditional pass."""
        self._conditional, self._done, self._given = conditional, 0, None

    def give(self, batch: int) -> None:
        """The inner model is given the next ``batch`` rows."""
        self._given, self._at = self._next(batch), 0

    def take(self) -> None:
        """The inner model is done with them."""
        self._given = None

    def of_forward(self, batch: int) -> Ranges | None:
        """The unconditional rows of the UNet's next forward; ``None`` if nobody knows.

        They are the rows that the inner model was given, once for each tile, or some of them after another.
        """
        if self._given is None:
            return ranges_of(self._next(batch))
        size, start = len(self._given), self._at
        if start + batch > size and (start or batch % size):
            return None
        self._at = (start + batch) % size
        return ranges_of([self._given[(start + place) % size] for place in range(batch)])

    def _next(self, batch: int) -> Sequence[bool]:
        """Whether each of the next rows is of the unconditional pass."""
        start = self._done
        self._done += batch
        return [place >= self._conditional for place in range(start, start + batch)]


class _Watch:
    """Hooks on the CFG module, its inner model and the UNet, which tell ``rows`` before each forward."""

    def __init__(
        self,
        denoiser: Any,
        unet: Callable[[], nn.Module],
        rows: BatchRows,
        before_forward: Callable[[], None],
    ) -> None:
        self._denoiser, self._unet = denoiser, unet
        self._rows, self._before_forward = rows, before_forward
        self._passes = Passes()
        self._hooks: list[RemovableHandle] = []

    def begin(self) -> None:
        """Watch over the models that are there now, and no more over others."""
        self.end()
        inner: nn.Module = self._denoiser.inner_model
        self._hooks += [
            self._denoiser.register_forward_pre_hook(self._before_denoiser, with_kwargs=True),
            inner.register_forward_pre_hook(self._before_inner),
            inner.register_forward_hook(self._after_inner),
            self._unet().register_forward_pre_hook(self._before_unet, with_kwargs=True),
        ]

    def end(self) -> None:
        """Take all hooks off."""
        while self._hooks:
            self._hooks.pop().remove()

    def _before_denoiser(self, _: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        told = keywords["cond"] if "cond" in keywords else arguments[3]
        self._passes.begin(sum(len(parts) for parts in told.batch))

    def _before_inner(self, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._passes.give(len(arguments[0]))

    def _after_inner(self, _: nn.Module, _arguments: tuple[Any, ...], _output: Any) -> None:
        self._passes.take()

    def _before_unet(self, _: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        batch = len(arguments[0] if arguments else keywords["x"])
        self._rows.tell(batch, self._passes.of_forward(batch))
        self._before_forward()


@contextmanager
def telling_rows(
    denoiser: Any,
    unet: Callable[[], nn.Module],
    rows: BatchRows,
    before_forward: Callable[[], None],
    after_switch: Callable[[], None],
) -> Iterator[None]:
    """While inside, tell ``rows`` before each forward of ``unet``; ``denoiser`` is the host's CFG module.

    ``before_forward`` is called at the same moments, and ``after_switch`` when a refiner has taken over, from
    when on ``unet`` may be another.
    """
    watch = _Watch(denoiser, unet, rows, before_forward)

    def switched() -> None:
        after_switch()
        watch.begin()

    try:
        watch.begin()
        with _telling_of_switches(denoiser, switched):
            yield
    finally:
        watch.end()


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
