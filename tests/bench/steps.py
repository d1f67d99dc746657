"""Times of sampling steps on a running WebUI, several sides in turns, as CPU seconds of its process.

A step is the time from one call of the denoiser to the next, so a flip counts into the step before which it
happens. Other programs on the machine hardly disturb CPU seconds, but they do: let nothing else run.
"""

from __future__ import annotations

import statistics
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tests.hosts.server import WebUI
from tests.published import PUBLISHED

#: What a side asks for: LoRA tags, and K-LoRA's settings or None for a picture without it.
Side = tuple[str, dict[str, Any] | None]


#: Name -> the content's and the style's tag (``{0}`` and ``{1}`` are their names), and the settings.
SIDES: dict[str, Side] = {
    "added": ("<lora:{0}:1><lora:{1}:1>", None),
    "content": ("<lora:{0}:1>", None),
    "style": ("<lora:{1}:1>", None),
    "default": ("<lora:{0}:1><lora:{1}:1>", {}),
    "K-LoRA S": ("<lora:{0}:1><lora:{1}:1>", PUBLISHED),
    "K-LoRA S*": ("<lora:{0}:1><lora:{1}:1>", {**PUBLISHED, "schedule": "S*"}),
    "keep 0.5": ("<lora:{0}:1><lora:{1}:1>", {**PUBLISHED, "keep": 0.5}),
    "guidance content": ("<lora:{0}:1><lora:{1}:1>", {**PUBLISHED, "guidance": "content", "rule": "weights"}),
    "keep 0.7, guidance content": (
        "<lora:{0}:1><lora:{1}:1>",
        {**PUBLISHED, "guidance": "content", "keep": 0.7},
    ),
    "window": ("<lora:{0}:1><lora:{1}:1:start=0.5>", None),
    "smooth": ("<lora:{0}:1><lora:{1}:1>", {**PUBLISHED, "rule": "smooth"}),
}


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what both sides are asked for."""
    parser.add_argument("--steps", type=int, default=20, help="default: the WebUI's own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="added is always one")


def asked_sides(content: str, style: str, options: Namespace) -> dict[str, Side]:
    """The wanted sides, of two LoRAs by name."""
    return {
        name: (tags.format(content, style), klora)
        for name, (tags, klora) in SIDES.items()
        if name in {"added", *options.sides}
    }


def asked_request(options: Namespace) -> dict[str, Any]:
    """Size and steps of every picture."""
    return {"steps": options.steps, "width": options.size, "height": options.size}


@dataclass
class Times:
    """What was measured of one side, in seconds."""

    first: list[float] = field(default_factory=list)
    """Of each picture: until the first call of the denoiser, scores included."""
    pictures: list[list[float]] = field(default_factory=list)
    """Of each picture: each of its steps."""
    merging: list[float] = field(default_factory=list)
    """Of each step: what the host's own merging took, where a merge is a call inside the denoiser."""
    before: list[float] = field(default_factory=list)
    """Of each picture: all that happens between the start of a step and the denoiser, where Forge flips."""
    merges: int = 0
    """Of attention layers, in the last picture."""


def measure(webui: WebUI, side: Side, request: Mapping[str, Any], times: Times) -> str:
    """Make one picture, note its times, and return them as a line.

    From the second on it follows another of the same side, as the pictures of somebody who tries seeds do:
    what the host merges for a side and keeps, such as added LoRAs, is then there.
    """
    loras, klora = side
    prompt = f"a cat {loras}"
    if times.first:
        webui.txt2img(prompt, klora, **{**request, "steps": 1})
    webui.call("/probe/arm", {})
    began = webui.call("/probe/clock")["now"]
    webui.txt2img(prompt, klora, **request)
    seen = webui.call("/probe/look")
    steps, merging = _between(seen["calls"]), _between(seen["merging"])
    times.first.append(seen["calls"][0] - began)
    times.pictures.append(steps)
    times.merging += merging
    times.before.append(sum(seen["before"][1:]))
    times.merges = sum(count for name, count in seen["merges"].items() if "_attn" in name)
    return (
        f"first call after {times.first[-1]:.2f} s, median step {statistics.median(steps):.3f} s, "
        f"merging {sum(merging):.2f} s, before the denoiser {times.before[-1]:.2f} s"
    )


def _between(moments: Sequence[float]) -> list[float]:
    return [b - a for a, b in pairwise(moments)]


def compare(webui: WebUI, sides: Mapping[str, Side], request: Mapping[str, Any], rounds: int) -> None:
    """Print each picture's times, then medians, and the median of each round's ratio to its first side.

    A machine is not equally fast from minute to minute, so a round is compared with itself, and every other
    round goes backwards.
    """
    times = {name: Times() for name in sides}
    for number in range(1, rounds + 1):
        for name, side in list(sides.items())[:: 1 if number % 2 else -1]:
            line = measure(webui, side, request, times[name])
            print(f"round {number} {name}: {line}, {time.strftime('%H:%M:%S')}", flush=True)
    base = next(iter(times.values()))
    for name, one in times.items():
        whole = [first + sum(steps) for first, steps in zip(one.first, one.pictures, strict=True)]
        whole_base = [first + sum(steps) for first, steps in zip(base.first, base.pictures, strict=True)]
        steps = _each(statistics.median, one.pictures)
        print(
            f"{name:10}: median step {statistics.median(steps):.3f} s, ratio "
            f"{_ratio(steps, _each(statistics.median, base.pictures))}; of it merging "
            f"{statistics.median(one.merging):.3f} s; all steps, ratio "
            f"{_ratio(_each(sum, one.pictures), _each(sum, base.pictures))}; "
            f"whole picture of a warm pair, ratio {_ratio(whole[1:], whole_base[1:])}; before the denoiser, "
            f"a picture {statistics.median(one.before):.2f} s; first call, cold {one.first[0]:.2f} s, then "
            f"{min(one.first[1:] or [0]):.2f} s; merges of attention layers {one.merges}",
            flush=True,
        )


def _each(average: Callable[[list[float]], float], pictures: Sequence[list[float]]) -> list[float]:
    return [average(steps) for steps in pictures]


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The median of each round's ratio, and the least and the greatest."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    if not ratios:
        return "-"
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
