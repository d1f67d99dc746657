"""Time and peak memory to read and score a pair of files, against the bare cost of every up @ down.

    python -m tests.bench.bench_files [--model sdxl] [--rank 32] [--repeat 3] [--json FILE]

Both are measured in one run, in turns, each in a process of its own so that its peak is its own. ``kept`` is
the pair again after a restart, from scores on disk; ``first`` has to hash both files and to keep the scores.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open

from klora.files import pair_layers, read_lora
from klora.planning import keep_scores_in, planner_of_files
from klora.settings import Settings
from tests.bench.child import measured_apart
from tests.bench.memory import forget_peak, peak_mib
from tests.bench.models import flux, sdxl, sdxl_attention, write_lora

MODELS = {"sdxl": sdxl, "attention": sdxl_attention, "flux": flux}


def bare(first: str, second: str) -> float:
    """Read every tensor with the safetensors library, cast to fp32, form every up @ down once; nothing
    else."""
    total = 0.0
    for path in (first, second):
        with safe_open(path, "pt") as stream:
            for key in stream.keys():  # noqa: SIM118 - not a dict
                if key.endswith("lora_up.weight"):
                    up = stream.get_tensor(key).float().flatten(1)
                    down = stream.get_tensor(key.replace("lora_up", "lora_down")).float().flatten(1)
                    total += float((up @ down)[0, 0])
    return total


def formed(first: str, second: str) -> float:
    """The same through `read_lora`, `pair_layers` and `delta`: names, checks, alpha, a test for NaN."""
    total = 0.0
    for pair in pair_layers(read_lora(first), read_lora(second)):
        for layer in (pair.content, pair.style):
            total += float(layer.delta().flatten()[0]) if layer else 0.0
    return total


def scored(first: str, second: str) -> float:
    """The whole: read both files, pair, form and score every layer."""
    planner = planner_of_files(read_lora(first), read_lora(second), Settings(other_layers="fuse"))
    return float(planner.contest.scores.measured["total"].sum())


def kept(first: str, second: str) -> float:
    """The same with scores kept on disk, if an earlier process has left some."""
    keep_scores_in(Path(first).parent / "scores")
    return scored(first, second)


def opened(first: str, second: str) -> float:
    """Headers and shapes alone."""
    return float(len(pair_layers(read_lora(first), read_lora(second))))


TASKS: dict[str, Callable[[str, str], float]] = {
    "open": opened,
    "bare": bare,
    "form": formed,
    "score": scored,
    "first": kept,
    "kept": kept,
}


def child(task: str, first: str, second: str) -> None:
    """Run one task in this process; print seconds, and MiB of peak memory above what was there before."""
    before, start, cpu = forget_peak(), time.perf_counter(), time.process_time()
    answer = TASKS[task](first, second)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    if not math.isfinite(answer):
        raise SystemExit(f"{task}: the answer is not finite")
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak_mib": peak_mib() - before}))


def forget_kept(files: list[str]) -> None:
    """Throw away the scores that are kept on disk."""
    for one in (Path(files[0]).parent / "scores").glob("*"):
        one.unlink()


def one_round(files: list[str]) -> dict[str, dict[str, float]]:
    """Each task once, in turns, so that a change of the machine's load falls on all alike."""
    forget_kept(files)
    return {task: measured_apart("bench_files", task, *files) for task in TASKS}


def main() -> None:
    """Make the files, measure each task in turn, print a table."""
    parser = argparse.ArgumentParser(description="time and memory to read and score a pair")
    parser.add_argument("--model", choices=MODELS, default="sdxl")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    shapes = MODELS[arguments.model]()
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{name}.safetensors") for name in ("content", "style")]
        for seed, file in enumerate(files):
            write_lora(Path(file), shapes, arguments.rank, seed)
        size = Path(files[0]).stat().st_size / 2**20
        threads = torch.get_num_threads()
        print(f"{len(shapes)} layers, rank {arguments.rank}, {size:.0f} MiB a file, {threads} threads")
        runs = [one_round(files) for _ in range(arguments.repeat)]
    medians = {
        task: {what: statistics.median(run[task][what] for run in runs) for what in runs[0][task]}
        for task in TASKS
    }
    least = {task: min(run[task]["cpu"] for run in runs) for task in TASKS}
    for task, found in medians.items():
        print(
            f"{task:6} {found['seconds']:8.2f} s  least CPU {least[task]:7.3f} s  "
            f"{least[task] / least['bare']:6.2f} x bare  {found['peak_mib']:8.0f} MiB peak"
        )
    if arguments.json:
        measurements = {"rank": arguments.rank, "tasks": medians, "runs": runs}
        Path(arguments.json).write_text(json.dumps(measurements, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:5])
    else:
        main()
