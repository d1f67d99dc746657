"""Where time enters: moments and clocks, the style's bonus S(t), windows, and the plan of a whole
sampling.
"""

from klora.schedule.clock import noise_progress, published_progress, step_progress
from klora.schedule.moment import (
    LARGEST_GUIDANCE_SCALE,
    USUAL_GUIDANCE_SCALE,
    Moment,
    evenly_spaced,
)
from klora.schedule.pattern import bonus
from klora.schedule.plan import Plan
from klora.schedule.position import Position
from klora.schedule.shares import Expected, LayerShares, Shares
from klora.schedule.window import ALWAYS, Span, Window

__all__ = [
    "ALWAYS",
    "LARGEST_GUIDANCE_SCALE",
    "USUAL_GUIDANCE_SCALE",
    "Expected",
    "LayerShares",
    "Moment",
    "Plan",
    "Position",
    "Shares",
    "Span",
    "Window",
    "bonus",
    "evenly_spaced",
    "noise_progress",
    "published_progress",
    "step_progress",
]
