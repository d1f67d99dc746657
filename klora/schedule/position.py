"""Where in a sampling pass a call of the denoiser stands, whatever the sampler does."""

from __future__ import annotations

from collections.abc import Sequence

# Samplers compute with the schedule's levels in float32 or less.
_TOLERANCE = 1e-3


class Position:
    """Counts steps by the noise level of each call, because calls are no measure of progress.

    Second-order samplers call the denoiser twice a step, DPM adaptive 87 times in 4, img2img starts in
    the middle of the schedule. ``levels`` are the noise levels (sigmas or timesteps) at which the
    schedule puts a step; those above the level of the first call are not part of this pass. Without
    levels, the share of ``calls`` made so far serves instead. A position never goes back, so a sampler
    that re-noises (Restart, DPM fast) flips no layer to and fro.
    """

    def __init__(self, levels: Sequence[float], steps: int, calls: int | None = None) -> None:
        self._schedule = sorted((level for level in levels if level > 0), reverse=True)
        self._levels: list[float] | None = None
        self._calls_per_step = max((calls or steps) / max(steps, 1), 1e-9)
        self._calls = 0
        self.steps = max(steps, 1)
        self.step = 0

    @property
    def levels(self) -> Sequence[float]:
        """The noise levels of the steps of this pass, the first first; empty if nobody told them, or before
        the first call."""
        return tuple(self._levels or ())

    def advance(self, level: float) -> int:
        """The step, from 0, of the call that is about to be made at noise ``level``."""
        if self._levels is None:
            self._levels = [one for one in self._schedule if one <= level * (1 + _TOLERANCE)]
            self.steps = len(self._levels) or self.steps
        if self._levels:
            step = sum(one >= level * (1 - _TOLERANCE) for one in self._levels) - 1
        else:
            step = int(self._calls / self._calls_per_step)
        self._calls += 1
        self.step = min(max(step, self.step), self.steps - 1)
        return self.step
