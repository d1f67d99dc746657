"""``python -m klora.lab``: train the lab's model, judges and LoRAs, compare methods, install into a WebUI."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch

from klora.errors import KloraError
from klora.lab import checkpoint, icons, train, truth
from klora.lab.benchmark import commands as benchmark
from klora.lab.fronts import commands as fronts
from klora.lab.loras import RECIPES

WEIGHTS = Path(__file__).parent / "weights"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="python -m klora.lab", description=__doc__)
    commands = root.add_subparsers(dest="command", required=True)
    learn = commands.add_parser("train", help="train from the icon sets; goes on where it stopped")
    learn.add_argument(
        "--stage",
        choices=[*train.STAGES, *train.EXTRA_STAGES],
        action="append",
        help="only this stage; repeatable",
    )
    learn.add_argument("--cache", type=Path, default=icons.default_cache(), help="downloads and checkpoints")
    learn.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the finished weights")
    learn.add_argument("--threads", type=int, default=1, help="one is steadier on a busy machine")
    learn.add_argument("--minutes", type=float, default=math.inf, help="stop each training after this time")
    learn.add_argument("--steps", type=int, help="steps of the base training, or of the stage 'improve'")
    learn.add_argument("--lora", choices=list(RECIPES), action="append", help="only this LoRA; repeatable")
    place = commands.add_parser("install", help="copy the model into a WebUI")
    place.add_argument("webui", type=Path, help="the WebUI's folder")
    place.add_argument("--weights", type=Path, default=WEIGHTS)
    drawn = commands.add_parser("truth", help="draw the true pictures of the held-out pairs that are shipped")
    drawn.add_argument("--cache", type=Path, default=icons.default_cache(), help="downloads")
    compare = commands.add_parser("benchmark", help="compare methods of fusion by pictures and figures")
    benchmark.add_arguments(compare, WEIGHTS)
    fronts.add_arguments(commands.add_parser("fronts", help="compare methods over their whole balance"))
    return root


def main(arguments: list[str] | None = None) -> int:
    """Run a command; bad input is one line on stderr and exit status 2."""
    chosen = parser().parse_args(arguments)
    try:
        return _run(chosen)
    except KloraError as error:
        print(f"klora: {error.reason}", file=sys.stderr)
        return 2


def _run(chosen: argparse.Namespace) -> int:
    if chosen.command == "install":
        print(checkpoint.install(chosen.weights, chosen.webui))
        return 0
    if chosen.command == "truth":
        icons.fetch(chosen.cache)
        print(truth.write(chosen.cache))
        return 0
    if chosen.command == "benchmark":
        torch.set_num_threads(1)
        return benchmark.run(chosen)
    if chosen.command == "fronts":
        torch.set_num_threads(1)
        return fronts.run(chosen)
    torch.set_num_threads(chosen.threads)
    names = tuple(chosen.lora or RECIPES)
    job = train.Job(chosen.cache, chosen.out, chosen.minutes, chosen.steps, names)
    train.run(job, tuple(chosen.stage or train.STAGES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
