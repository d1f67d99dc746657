"""Windows as people write them into a LoRA tag: ``<lora:fox:1:start=0.2:stop=0.8>``.

A tag's text is cut at its colons into items; those that tell a window are read here and taken out, and the
rest is the host's. ``w=0:0.2,0.5:1`` holds colons itself, so the items that follow ``w=`` are joined to it
again as long as they look like the rest of a curve.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

from klora.errors import SettingsError
from klora.schedule.window import FIRST_STEP_NUMBER, WHOLE, Span, Window

#: Keys of a tag's named arguments that tell a window.
KEYS = ("start", "stop", "step", "hr_start", "hr_stop", "w")

_REST_OF_CURVE = re.compile(r"\s*-?[\d.]+\s*(,\s*[\d.]+\s*)?")
_STEPS = re.compile(r"\s*(\d{0,5})\s*-\s*(\d{0,5})\s*|\s*(\d{1,5})\s*", re.ASCII)
_LAST_STEP = 99_999.0


def cut_window(
    items: Sequence[str], tag: str, keys: Collection[str] = KEYS
) -> tuple[list[str], Window | None]:
    """(the items without those of a window, the window or ``None`` if they tell none).

    ``tag`` is how messages name the tag; ``keys`` are those that are ours. Raises `SettingsError` for a
    value that cannot be read.
    """
    kept: list[str] = []
    told: dict[str, str] = {}
    waiting = list(items)
    while waiting:
        item = waiting.pop(0)
        key, equals, value = item.partition("=")
        key = key.strip().lower()
        if not equals or key not in keys:
            kept.append(item)
            continue
        if key == "w":
            while waiting and _REST_OF_CURVE.fullmatch(waiting[0]):
                value += ":" + waiting.pop(0)
        if key in told:
            raise SettingsError(f"K-LoRA: {tag} says {key} twice; write it once.")
        told[key] = value.strip()
    return kept, _window(told, tag) if told else None


def has_curve(items: Sequence[str]) -> bool:
    """Whether the items of a tag hold ``w=`` with a point of a curve, ``share:factor``."""
    return any(
        item.partition("=")[0].strip().lower() == "w" and _REST_OF_CURVE.fullmatch(after) is not None
        for item, after in pairwise(items)
    )


def read_window(text: str) -> Window:
    """The window that a text such as ``start=0.2:stop=0.8`` tells; raises `SettingsError`."""
    kept, window = cut_window(text.split(":"), f"the window {text!r}")
    if window is None or any(kept):
        raise SettingsError(
            f"K-LoRA: the window {text!r} is not understood; write for example start=0.2:stop=0.8, step=5-20 "
            "or w=0:0.2,0.5:1."
        )
    return window


def _window(told: Mapping[str, str], tag: str) -> Window:
    if "step" in told and {"start", "stop"} & told.keys():
        raise SettingsError(f"K-LoRA: {tag} has step beside start or stop; write one of them.")
    span = _steps(told["step"], tag) if "step" in told else _span(told, "", tag)
    has_hires = {"hr_start", "hr_stop"} & told.keys()
    hires = _span(told, "hr_", tag) if has_hires else None
    return Window(span, hires, _curve(told["w"], tag) if "w" in told else ())


def _span(told: Mapping[str, str], prefix: str, tag: str) -> Span:
    start, stop = (
        _bound(told[prefix + key], prefix + key, tag) if prefix + key in told else default
        for key, default in (("start", WHOLE.start), ("stop", WHOLE.stop))
    )
    if start == 1 and stop >= FIRST_STEP_NUMBER:
        start = WHOLE.start  # beside the number of a step, the first step, not the end of the sampling
    are_alike = (start >= FIRST_STEP_NUMBER) == (stop >= FIRST_STEP_NUMBER)
    if are_alike and start > stop:
        raise SettingsError(
            f"K-LoRA: {tag} has {prefix}start={start:g} behind {prefix}stop={stop:g}, which leaves no step; "
            "write the smaller first."
        )
    return Span(start, stop)


def _bound(text: str, key: str, tag: str) -> float:
    number = _number(text)
    is_share = number is not None and 0 <= number <= 1
    is_step = number is not None and FIRST_STEP_NUMBER <= number <= _LAST_STEP and number == int(number)
    if number is None or not (is_share or is_step):
        raise SettingsError(
            f"K-LoRA: {tag} has {key}={text}; write a share of the sampling from 0 to 1, or the number of a "
            f"step from {FIRST_STEP_NUMBER:g} on."
        )
    return number


def _steps(text: str, tag: str) -> Span:
    found = _STEPS.fullmatch(text)
    if found is None or not any(found.groups()):
        raise SettingsError(
            f"K-LoRA: {tag} has step={text}; write the first and the last step, such as 5-20."
        )
    first, last = (found[3], found[3]) if found[3] else (found[1], found[2])
    start, stop = int(first or 1), int(last) if last else int(_LAST_STEP)
    if not 1 <= start <= stop:
        raise SettingsError(
            f"K-LoRA: {tag} has step={text}; steps count from 1, and the last is not before the first."
        )
    # Bounds below 2 would be shares: step 1 begins at share 0, and a span that ends with it holds no other.
    return Span(0.0 if start == 1 else float(start), float(stop) if stop > 1 else _JUST_THE_FIRST)


_JUST_THE_FIRST = 1e-9
"""As a share of the sampling: later than the beginning of the first step, and before that of any other."""


def _curve(text: str, tag: str) -> tuple[tuple[float, float], ...]:
    points = []
    for point in text.split(","):
        place, colon, factor = point.partition(":")
        at, times = _number(place), _number(factor)
        if not colon or at is None or times is None or not 0 <= at <= 1 or not -10 <= times <= 10:
            raise SettingsError(
                f"K-LoRA: {tag} has w={text}; write points share:factor with shares from 0 to 1, such as "
                "w=0:0.2,0.5:1."
            )
        points.append((at, times))
    if any(later[0] <= earlier[0] for earlier, later in pairwise(points)):
        raise SettingsError(f"K-LoRA: {tag} has w={text}; write the points in order, each share once.")
    return tuple(points)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if number == number and abs(number) != float("inf") else None
