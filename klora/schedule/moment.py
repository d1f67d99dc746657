"""A moment of a sampling: all that changes while one is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from klora.schedule.clock import step_progress

USUAL_GUIDANCE_SCALE = 7.0
"""Where nobody has said otherwise: what AUTOMATIC1111 starts with."""
LARGEST_GUIDANCE_SCALE = 100.0
"""The WebUIs' sliders end at 30, their API takes more; the setting ``guidance`` ends here, too."""


@dataclass(frozen=True)
class Moment:
    """Step ``step`` (from 0) of ``steps``.

    ``noise`` is progress by the noise that is left, 0 at pure noise and 1 at a clean picture, or ``None``
    where nobody knows it. ``guidance_scale`` is g of classifier-free guidance at this moment; ``None`` and
    1 mean that there is no unconditional pass that counts. ``is_hires`` is set in a hires pass.
    """

    step: int
    steps: int
    noise: float | None = None
    guidance_scale: float | None = None
    is_hires: bool = False

    @property
    def progress(self) -> float:
        """t by the number of the step: 0 at the first, 1 at the last."""
        return step_progress(self.step, self.steps)

    @property
    def noise_progress(self) -> float:
        """t by the noise that is left; by the step where the noise is not known."""
        return self.progress if self.noise is None else self.noise

    @property
    def share_done(self) -> float:
        """The share of the steps that are over when this one begins, 0 to below 1."""
        return self.step / max(self.steps, 1)


def evenly_spaced(
    steps: int, guidance_scale: float | None = None, *, strength: float = 1.0
) -> Sequence[Moment]:
    """The moments of a sampling whose timesteps lie evenly from the first to 0, as DDIM's or type Uniform.

    ``strength`` is img2img's: that share of the noise is put in, and the first step starts there. Where no
    sampler tells its noise levels (files alone, a preview), these stand for them.
    """
    return [
        Moment(step, steps, 1 - strength * (1 - step_progress(step, steps)), guidance_scale)
        for step in range(steps)
    ]
