"""Windows: the part of a sampling in which a LoRA takes part, and how strongly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from klora.schedule.moment import Moment

#: From this number on, a bound is the number of a step; below, a share of the sampling.
FIRST_STEP_NUMBER = 2.0


@dataclass(frozen=True)
class Span:
    """From ``start`` to ``stop``: shares of the sampling (0 to 1), or from 2 on numbers of steps, from 1.

    As shares, a span begins with the first step at or after ``start`` and ends before the first step at or
    after ``stop``, so that two spans that meet share no step and leave none out. As numbers of steps, both
    ends belong to it.
    """

    start: float = 0.0
    stop: float = 1.0

    def holds(self, moment: Moment) -> bool:
        """Whether the step of this moment belongs to the span."""
        number = moment.step + 1
        done = moment.share_done
        has_begun = number >= self.start if self.start >= FIRST_STEP_NUMBER else done >= self.start
        is_over = number > self.stop if self.stop >= FIRST_STEP_NUMBER else done >= self.stop
        return has_begun and not is_over


WHOLE = Span()


@dataclass(frozen=True)
class Window:
    """When a LoRA takes part: ``span``, in a hires pass ``hires_span`` (``None``: the same span), and a
    curve.

    ``curve`` are points (share of the steps from 0 to 1, factor), in order: the factor runs straight from one
    to the next and is constant outside. The factors multiply what else decides about the LoRA.
    """

    span: Span = WHOLE
    hires_span: Span | None = None
    curve: tuple[tuple[float, float], ...] = ()

    def share(self, moment: Moment) -> float:
        """The factor at a moment: 0 outside the span, exactly 1 inside it without a curve."""
        span = self.span if self.hires_span is None or not moment.is_hires else self.hires_span
        if not span.holds(moment):
            return 0.0
        if not self.curve:
            return 1.0
        places, factors = zip(*self.curve, strict=True)
        return float(np.interp(moment.progress, places, factors))


ALWAYS = Window()
