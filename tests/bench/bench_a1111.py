"""K-LoRA against added LoRAs on a real AUTOMATIC1111 with a full-size SD1.5 UNet, in one run.

    KLORA_A1111=FOLDER python -m tests.bench.bench_a1111 [--steps 12] [--rounds 3] [--size 256]

All sides take turns on one server. Each LoRA alone is one of them: K-LoRA gives the model their weights and
not those of the sum, and other activations may cost the processor more or less. A step is the time from one
call of the UNet to the next, so a flip counts into the step before which it happens; what the host's merging
takes of it is measured apart. The first picture of each side after a change of the LoRAs gives the time
until the first call of the UNet, scores included. All times are CPU seconds of the WebUI's process, which
other programs on the machine hardly disturb.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.hosts.conftest import FLAGS, HERE, PROJECT
from tests.hosts.make_loras import make_loras
from tests.hosts.server import WebUI, free_port, start

CONTENT, STYLE = "<lora:content-sd1-full:1>", "<lora:style-sd1-full:1>"


def measured(
    webui: WebUI, loras: str, klora: dict[str, Any] | None, request: dict[str, Any]
) -> tuple[float, list[float], list[float], int]:
    """Seconds until the first call; of each step; of merging in each; merges of attention layers."""
    webui.call("/probe/arm", {})
    began = webui.call("/probe/clock")["now"]
    webui.txt2img(f"a cat {loras}", klora, **request)
    seen = webui.call("/probe/look")
    calls, merging = seen["calls"], seen["merging"]
    merges = sum(count for name, count in seen["merges"].items() if "_attn" in name)
    return calls[0] - began, _between(calls), _between(merging), merges


def _between(moments: list[float]) -> list[float]:
    return [b - a for a, b in pairwise(moments)]


def main() -> None:
    """Run both sides in turns and print the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    root = Path(os.environ["KLORA_A1111"])
    python = os.environ.get("KLORA_A1111_PYTHON") or str(root / "venv" / "bin" / "python")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        subprocess.run(
            [python, str(HERE / "make_models.py"), str(root), made, "--full"], check=True, cwd=root
        )
        (folder / "loras").mkdir()
        make_loras(folder / "sd1-full.safetensors", folder / "loras")
        extensions = folder / "data" / "extensions"
        extensions.mkdir(parents=True)
        (extensions / "sd-webui-klora").symlink_to(PROJECT)
        (extensions / "klora-probe").symlink_to(HERE / "probe")
        port = free_port()
        folders = ["--data-dir", folder / "data", "--ckpt-dir", made, "--lora-dir", folder / "loras"]
        flags = [*FLAGS, *map(str, folders), "--ckpt", str(folder / "sd1-full.safetensors")]
        process = start(python, root, flags, folder / "log", port)
        try:
            compare(WebUI(f"http://127.0.0.1:{port}"), options)
        finally:
            process.kill()


def compare(webui: WebUI, options: argparse.Namespace) -> None:
    """Print medians and ratios of added LoRAs, each alone, K-LoRA and K-LoRA with S*."""
    request = {"steps": options.steps, "width": options.size, "height": options.size}
    both = CONTENT + STYLE
    sides: dict[str, tuple[str, dict[str, Any] | None]] = {
        "added": (both, None),
        "content": (CONTENT, None),
        "style": (STYLE, None),
        "K-LoRA S": (both, {}),
        "K-LoRA S*": (both, {"schedule": "S*"}),
    }
    first: dict[str, list[float]] = {name: [] for name in sides}
    steps: dict[str, list[float]] = {name: [] for name in sides}
    merged: dict[str, list[float]] = {name: [] for name in sides}
    merges: dict[str, int] = {}
    for round_ in range(options.rounds):
        for name, (loras, klora) in sides.items():
            until_first, taken, merging, merges[name] = measured(webui, loras, klora, request)
            first[name].append(until_first)
            steps[name] += taken
            merged[name] += merging
            print(
                f"round {round_ + 1} {name}: first call after {until_first:.2f} s, median step "
                f"{statistics.median(taken):.3f} s, merging {[round(one, 2) for one in merging]}, "
                f"{time.strftime('%H:%M:%S')}",
                flush=True,
            )
    for name in sides:
        ratio = _ratio(statistics.median, steps[name], steps["added"])
        print(
            f"{name:10}: median step {statistics.median(steps[name]):.3f} s, ratio to added {ratio:.3f}; "
            f"of it merging {statistics.median(merged[name]):.3f} s; mean step ratio "
            f"{_ratio(statistics.mean, steps[name], steps['added']):.3f}; first call, cold "
            f"{first[name][0]:.2f} s, then {min(first[name][1:] or [0]):.2f} s; merges of attention layers "
            f"{merges[name]}"
        )


def _ratio(average: Callable[[list[float]], float], ours: list[float], theirs: list[float]) -> float:
    return average(ours) / average(theirs)


if __name__ == "__main__":
    main()
