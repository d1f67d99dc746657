"""CPU seconds of commands that touch no tensor, from the start of Python to its end, beside Python alone.

    python -m tests.bench.bench_start [--rounds 7]

The file that is inspected is a LoRA for all attention layers of SDXL, of rank 32 in fp16: 89 MiB.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.models import sdxl_attention, write_lora

ROOT = Path(__file__).resolve().parents[2]


def cpu_seconds(arguments: list[str]) -> float:
    """User and system time of a process of Python with these arguments."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Take turns, and print the least of all rounds."""
    parser = argparse.ArgumentParser(description="what the command line costs before it works")
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        file = str(write_lora(Path(folder) / "a.safetensors", sdxl_attention(), 32, 0))
        sides = {
            "python alone": ["-c", "pass"],
            "klora --help": ["-m", "klora", "--help"],
            "klora inspect FILE": ["-m", "klora", "inspect", file],
            "import torch": ["-c", "import torch"],
        }
        found = [{name: cpu_seconds(one) for name, one in sides.items()} for _ in range(rounds)]
    for name in sides:
        print(f"{name:20} {min(one[name] for one in found):6.3f} s of CPU")


if __name__ == "__main__":
    main()
