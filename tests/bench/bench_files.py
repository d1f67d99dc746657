"""Time and peak memory to read and score a pair of SDXL files, against the bare cost of every up @ down.

Both are measured in one run, one after the other, each in a process of its own so that its peak is its own:

    python tests/bench/bench_files.py [--rank 32] [--repeat 3] [--json FILE]

The files have seeded random weights on every linear and convolution of SDXL's UNet, in fp16, under the names
of kohya's scripts. diffusers tells the shapes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from klora.files import ldm_name, pair_layers, read_lora
from klora.planning import score_files
from klora.settings import Settings

#: Architecture of SDXL's UNet, as published in its config.json.
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def sdxl_shapes() -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of the weight, of every linear and convolution."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL)
    wanted = (torch.nn.Linear, torch.nn.Conv2d)
    return {name: tuple(one.weight.shape) for name, one in unet.named_modules() if isinstance(one, wanted)}


def write_lora(path: Path, shapes: dict[str, tuple[int, ...]], rank: int, seed: int) -> None:
    """A file of random fp16 factors, alpha half the rank."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (out, inside, *kernel) in shapes.items():
        stem = "lora_unet_" + str(ldm_name(name, "SDXL")).replace(".", "_")
        ones = [1] * len(kernel)
        tensors[f"{stem}.lora_down.weight"] = (
            torch.randn(rank, inside, *kernel, generator=generator).half() / 8
        )
        tensors[f"{stem}.lora_up.weight"] = torch.randn(out, rank, *ones, generator=generator).half() / 8
        tensors[f"{stem}.alpha"] = torch.tensor(rank / 2).half()
    save_file(tensors, path)


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
    return score_files(read_lora(first), read_lora(second), Settings()).gamma("paper")


def opened(first: str, second: str) -> float:
    """Headers and shapes alone."""
    return float(len(pair_layers(read_lora(first), read_lora(second))))


TASKS: dict[str, Callable[[str, str], float]] = {
    "open": opened,
    "bare": bare,
    "form": formed,
    "score": scored,
}


def peak_mib() -> float:
    """Peak resident memory of this process since `forget_peak` (Linux; nan elsewhere)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return math.nan
    line = next(one for one in status.read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def forget_peak() -> float:
    """Let the kernel count the peak from now on; gives what is resident now."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()


def child(task: str, first: str, second: str) -> None:
    """Run one task in this process; print seconds, and MiB of peak memory above what was there before."""
    before, start = forget_peak(), time.perf_counter()
    answer = TASKS[task](first, second)
    seconds = time.perf_counter() - start
    if not math.isfinite(answer):
        raise SystemExit(f"{task}: the answer is not finite")
    print(json.dumps({"seconds": seconds, "peak_mib": peak_mib() - before}))


def measured(task: str, files: list[str]) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", task, *files]
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": root}
    )
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """Make the files, measure each task in turn, print a table."""
    parser = argparse.ArgumentParser(description="time and memory to read and score an SDXL pair")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    shapes = sdxl_shapes()
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{name}.safetensors") for name in ("content", "style")]
        for seed, file in enumerate(files):
            write_lora(Path(file), shapes, arguments.rank, seed)
        size = Path(files[0]).stat().st_size / 2**20
        threads = torch.get_num_threads()
        print(f"{len(shapes)} layers, rank {arguments.rank}, {size:.0f} MiB a file, {threads} threads")
        # In turns, so that a change of the machine's load falls on all alike.
        runs = [{task: measured(task, files) for task in TASKS} for _ in range(arguments.repeat)]
    medians = {
        task: {what: statistics.median(run[task][what] for run in runs) for what in ("seconds", "peak_mib")}
        for task in TASKS
    }
    for task, found in medians.items():
        times = found["seconds"] / medians["bare"]["seconds"]
        print(f"{task:6} {found['seconds']:8.2f} s  {times:6.2f} x bare  {found['peak_mib']:8.0f} MiB peak")
    if arguments.json:
        measurements = {"rank": arguments.rank, "tasks": medians, "runs": runs}
        Path(arguments.json).write_text(json.dumps(measurements, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:5])
    else:
        main()
