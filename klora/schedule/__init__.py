"""Where time enters: the style's bonus S(t), the clocks, and the plan of a whole sampling."""

from klora.schedule.clock import noise_progress, published_progress, step_progress
from klora.schedule.pattern import bonus
from klora.schedule.plan import Plan
from klora.schedule.position import Position
from klora.schedule.rule import Rule

__all__ = ["Plan", "Position", "Rule", "bonus", "noise_progress", "published_progress", "step_progress"]
