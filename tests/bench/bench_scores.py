"""What it costs to score a pair of LoRA files, against the bare forming of every up @ down once.

    python -m tests.bench.bench_scores [--cases attention sdxl flux ...] [--rounds 5] [--threads 1]
    python -m tests.bench.bench_scores --growth

Bare: the product of every contested layer of both files, from factors in memory, into memory that is used
again: no implementation can do with less. Scores: read both files, pair their layers, form and score each
contested one. Every measurement is the first work of a process of its own, both sides take turns, and CPU
time is measured, so that other programs on the machine disturb both alike; the least of all rounds counts.
Peak memory is that above what the imports need.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from klora.files import LoraLayer, pair_layers, read_lora
from klora.planning import planner_of_files
from klora.planning.scoring import forget_scores
from klora.settings import Settings
from tests.bench.child import measured_apart
from tests.bench.memory import forget_peak, peak_mib
from tests.bench.models import Shapes, flux, sdxl, sdxl_attention, write_lora


@dataclass(frozen=True)
class Case:
    """A pair of files to score: their layers, their rank, and what other layers do."""

    shapes: Callable[[], Shapes]
    rank: int
    other_layers: str = "both"


CASES: Mapping[str, Case] = {
    "attention": Case(sdxl_attention, 32),
    "sdxl": Case(sdxl, 32, "fuse"),
    "flux-attention": Case(flux, 16),
    "flux": Case(flux, 16, "fuse"),
}


def part_of_sdxl(layers: int) -> Shapes:
    """Some of SDXL's attention layers."""
    return dict(list(sdxl_attention().items())[100 : 100 + layers])


def squares(width: int) -> Shapes:
    """Forty square layers, names as in SDXL, sizes as no model has them."""
    return dict.fromkeys(list(sdxl_attention())[100:140], (width, width))


GROWTH: Mapping[str, Case] = {
    **{
        f"{layers} layers": Case(lambda layers=layers: part_of_sdxl(layers), 32)
        for layers in (60, 120, 240, 460)
    },
    **{f"rank {rank}": Case(lambda: part_of_sdxl(120), rank) for rank in (4, 8, 16, 32, 64, 128)},
    **{f"width {width}": Case(lambda width=width: squares(width), 16) for width in (640, 1280, 2560, 5120)},
}


def contested(files: tuple[str, str], other_layers: str) -> list[LoraLayer]:
    """The layers of both files that are scored, content and style in turns."""
    pairs = {one.name: one for one in pair_layers(*map(read_lora, files))}
    wanted = [one for one in pairs.values() if one.content and one.style]
    wanted = [one for one in wanted if one.attention or other_layers == "fuse"]
    return [side for one in wanted for side in (one.content, one.style) if side is not None]


def bare(files: tuple[str, str], other_layers: str) -> tuple[float, int]:
    """CPU seconds to form every product, and how many."""
    factors = [layer.factors() for layer in contested(files, other_layers)]
    matrices = [(up.flatten(1), down.flatten(1)) for up, down in filter(None, factors)]
    memory = torch.zeros(max(up.shape[0] * down.shape[1] for up, down in matrices))
    start = time.process_time()
    for up, down in matrices:
        height, width = up.shape[0], down.shape[1]
        torch.mm(up, down, out=memory[: height * width].view(height, width))
    return time.process_time() - start, len(matrices)


def scores(files: tuple[str, str], other_layers: str) -> tuple[float, int]:
    """CPU seconds to score the pair, and how many deltas were scored."""
    forget_scores()
    start = time.process_time()
    planner = planner_of_files(*map(read_lora, files), Settings(other_layers=other_layers))
    return time.process_time() - start, 2 * len(planner.decided)


SIDES = {"bare": bare, "scores": scores}


def child(side: str, content: str, style: str, other_layers: str, threads: str) -> None:
    """Measure one side in this process and print it."""
    torch.set_num_threads(int(threads))
    before, start = forget_peak(), time.perf_counter()
    seconds, products = SIDES[side]((content, style), other_layers)
    wall = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "wall": wall, "products": products, "peak": peak_mib() - before}))


def measured(side: str, files: list[str], case: Case, threads: int) -> dict[str, float]:
    """One measurement in a process of its own. Nothing is kept on disk, so that both sides are cold."""
    told = (side, *files, case.other_layers, str(threads))
    return measured_apart("bench_scores", *told, KLORA_CACHE="")


def compared(case: Case, rounds: int, threads: int) -> dict[str, float]:
    """Both sides in turns; the least of all rounds."""
    with tempfile.TemporaryDirectory() as folder:
        files = [
            str(write_lora(Path(folder) / f"{name}.safetensors", case.shapes(), case.rank, seed))
            for seed, name in enumerate(("content", "style"))
        ]
        runs = [{side: measured(side, files, case, threads) for side in SIDES} for _ in range(rounds)]
    least = {
        (side, what): min(run[side][what] for run in runs)
        for side in SIDES
        for what in ("seconds", "wall", "products", "peak")
    }
    if least["bare", "products"] != least["scores", "products"]:
        raise SystemExit("the two sides formed different products")
    return {
        "products": least["bare", "products"],
        "bare": least["bare", "seconds"],
        "scores": least["scores", "seconds"],
        "ratio": least["scores", "seconds"] / least["bare", "seconds"],
        "peak_mib": min(math.inf, least["scores", "peak"]),
    }


def main() -> None:
    """Compare each case and print a table."""
    parser = argparse.ArgumentParser(description="what scoring costs over forming every product once")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument(
        "--growth", action="store_true", help="with layers, rank and size, instead of the cases"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    cases = GROWTH if options.growth else {name: CASES[name] for name in options.cases}
    print(f"CPU seconds, {options.threads} thread(s), least of {options.rounds}; peak above the import")
    print(f"{'':16} products   bare s  scores s  ratio  ms/product  peak MiB")
    found = {}
    for name, case in cases.items():
        one = found[name] = compared(case, options.rounds, options.threads)
        each = 1000 * one["scores"] / one["products"]
        print(
            f"{name:16} {one['products']:8.0f} {one['bare']:8.3f} {one['scores']:9.3f} {one['ratio']:6.2f} "
            f"{each:11.3f} {one['peak_mib']:9.0f}",
            flush=True,
        )
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
