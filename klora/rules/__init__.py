"""The rules: each says how much of content and style each layer applies at each moment."""

from klora.rules.guidance import BOTH, GUIDANCE, unconditional_factors
from klora.rules.part import Part
from klora.rules.registry import PARTS, RULES, TRANSFORMS, rule_named, transform_named
from klora.rules.rule import CONTENT, STYLE, Contest, Decides, Rule
from klora.rules.transform import Calibration, Transform

__all__ = [
    "BOTH",
    "CONTENT",
    "GUIDANCE",
    "PARTS",
    "RULES",
    "STYLE",
    "TRANSFORMS",
    "Calibration",
    "Contest",
    "Decides",
    "Part",
    "Rule",
    "Transform",
    "rule_named",
    "transform_named",
    "unconditional_factors",
]
