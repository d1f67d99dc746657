"""The rules: each says how much of content and style each layer applies at each moment."""

from klora.rules.guidance import BOTH, GUIDANCE, unconditional_factors
from klora.rules.registry import RULES, rule_named
from klora.rules.rule import CONTENT, STYLE, Contest, Decides, Rule

__all__ = [
    "BOTH",
    "CONTENT",
    "GUIDANCE",
    "RULES",
    "STYLE",
    "Contest",
    "Decides",
    "Rule",
    "rule_named",
    "unconditional_factors",
]
