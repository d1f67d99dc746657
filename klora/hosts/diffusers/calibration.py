"""Two extra forwards before the first step, with content alone and with style alone, for transforms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from klora.files import LoraFile
from klora.hosts.diffusers.clock import batch_of, first_conditional_row
from klora.hosts.diffusers.seam import PipelineSeam
from klora.planning import rewritten
from klora.rules import CONTENT, STYLE, Calibration
from klora.rules.transform import stacked_downs
from klora.weights import Fusion


class Calibrated:
    """Rewrites the pair of a fusion just before the first forward of the denoiser, by what that is given.

    ``own_inputs`` (content's, style's) replace keyword arguments of the denoiser in the two extra forwards.
    Raises `LoraFileError` at once for a layer that the transform cannot rewrite.
    """

    def __init__(
        self,
        pipe: Any,
        seam: PipelineSeam,
        fusion: Fusion,
        pair: tuple[LoraFile, LoraFile],
        own_inputs: Sequence[Mapping[str, Any]],
    ) -> None:
        self._pipe, self._seam, self._fusion, self._pair = pipe, seam, fusion, pair
        self._own_inputs = tuple(own_inputs) or ({}, {})
        downs = stacked_downs(*pair, fusion.planner.settings.chosen_transform)
        present = {layer.name for layer in seam.layers()}
        self._downs = {name: down for name, down in downs.items() if name in present}

    def __call__(self, denoiser: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        """Run both forwards, rewrite the pair, and score it anew."""
        batch = batch_of(arguments, keywords)
        first = first_conditional_row(self._pipe, batch) or 0
        given = _from_row(first, batch, (arguments, keywords))
        content, style = (self._moments(denoiser, place, given, batch - first) for place in (CONTENT, STYLE))
        moments = {name: (content[name], style[name]) for name in self._downs}
        weights = self._seam.weights
        calibration = Calibration((weights[CONTENT], weights[STYLE]), moments)
        settings = self._fusion.planner.settings
        self._seam.exchange_pair(*rewritten(*self._pair, settings, calibration))
        self._fusion.plan_anew()

    def _moments(
        self, denoiser: nn.Module, place: int, given: tuple[Any, Any], rows: int
    ) -> dict[str, Tensor]:
        """Z Z^T of each layer in one forward with the LoRA at ``place`` alone."""
        arguments, keywords = given
        self._seam.apply_alone(place)
        own = _repeated(rows, dict(self._own_inputs[place]))
        with torch.no_grad(), self._watched() as moments:
            # Not denoiser(...): that would call the hook that has called this.
            denoiser.forward(*arguments, **{**keywords, **own})
        return moments

    @contextmanager
    def _watched(self) -> Iterator[dict[str, Tensor]]:
        moments = {
            name: torch.zeros(len(down), len(down), dtype=torch.float64) for name, down in self._downs.items()
        }

        def watching(name: str) -> Any:
            down = self._downs[name]

            def before_call(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
                moments[name] += moment(layer, arguments[0], down)

            return before_call

        handles = [self._seam.module(name).register_forward_pre_hook(watching(name)) for name in self._downs]
        try:
            yield moments
        finally:
            for handle in handles:
                handle.remove()


def moment(layer: nn.Module, given: Tensor, down: Tensor) -> Tensor:
    """Z Z^T ``[r, r]`` in fp64 on the CPU, Z = A X: A is ``down`` ``[r, in * kernel]``, X is ``given``."""
    down = down.to(given.device, torch.float32)
    if isinstance(layer, nn.Conv2d):
        kernel = down.reshape(len(down), -1, *layer.kernel_size)
        spread = functional.conv2d(
            given.float(), kernel, stride=layer.stride, padding=layer.padding, dilation=layer.dilation
        )
        seen = spread.movedim(1, -1).reshape(-1, len(down))
    else:
        seen = functional.linear(given.float(), down).reshape(-1, len(down))
    wide = seen.cpu().double()
    return wide.T @ wide


def _from_row(first: int, batch: int, value: Any) -> Any:
    """Arguments of the denoiser without the rows before ``first``, however deep they lie."""
    if isinstance(value, Tensor):
        return value[first:] if value.dim() and value.shape[0] == batch else value
    if isinstance(value, Mapping):
        return {key: _from_row(first, batch, one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_from_row(first, batch, one) for one in value)
    return value


def _repeated(rows: int, value: Any) -> Any:
    """Arguments of one row for as many rows as there are."""
    if isinstance(value, Tensor):
        return value.expand(rows, *value.shape[1:]) if value.dim() and value.shape[0] == 1 else value
    if isinstance(value, Mapping):
        return {key: _repeated(rows, one) for key, one in value.items()}
    return value
