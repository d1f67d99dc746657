"""Which LoRAs take part in the unconditional pass of classifier-free guidance.

The guided prediction is e_u + g * (e_c - e_u): what a LoRA does in both passes counts once, what it does in
the conditional pass alone counts g times.
"""

from __future__ import annotations

from klora.options import Setting
from klora.schedule import LARGEST_GUIDANCE_SCALE

BOTH, CONTENT_ALONE, NONE = "both", "content", "none"
_TIMES = "x"
"""After a number: so many times each of the two counts, in place of the style alone."""


def _normal(text: str) -> str:
    word = text.lower()
    if word in (BOTH, CONTENT_ALONE, NONE):
        return word
    remedy = (
        f"write {BOTH}, {CONTENT_ALONE}, {NONE}, a number from 1 to {LARGEST_GUIDANCE_SCALE:g}, "
        "or one with an x after it, such as 4x"
    )
    end = _TIMES if word.endswith(_TIMES) else ""
    try:
        strength = float(word.removesuffix(_TIMES))
    except ValueError as error:
        raise ValueError(remedy) from error
    if not 1 <= strength <= LARGEST_GUIDANCE_SCALE:
        raise ValueError(remedy)
    return f"{strength:.12g}{end}"


GUIDANCE = Setting(
    "guidance",
    "text",
    "Negative side",
    "4x",
    "Which LoRAs of the pair also act on the negative side of the guidance (CFG). both: as every WebUI does. "
    "content: the content alone, so the style is drawn towards more strongly. none: neither, so each counts "
    "as often as the CFG scale says. 4x: each counts at most 4 times. A number from 1 on: how strongly the "
    "style counts whatever the CFG scale is; 1 is both.",
    scope="rule",
    check=_normal,
    before=BOTH,
    advanced=True,
)


def unconditional_factors(guidance: str, scale: float | None) -> tuple[float, float] | None:
    """What multiplies the shares of content and style in the unconditional pass; ``None``: nothing does.

    ``scale`` is g. Where it is 1, or there is no unconditional pass (``None``), what a LoRA does there does
    not reach the picture, so nothing is changed. A number e gives the style (g - e) / (g - 1) of its share,
    with which it counts e times in the guided prediction; beyond e = g it is left out, which counts g
    times. A number with an x does the same to both.
    """
    if guidance == BOTH or scale is None or scale <= 1:
        return None
    if guidance == CONTENT_ALONE:
        return 1.0, 0.0
    if guidance == NONE:
        return 0.0, 0.0
    factor = max(0.0, (scale - float(guidance.removesuffix(_TIMES))) / (scale - 1))
    if factor == 1:
        return None
    return (factor if guidance.endswith(_TIMES) else 1.0, factor)
