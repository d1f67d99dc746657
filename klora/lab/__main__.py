"""``python -m klora.lab``: train the lab's model, judges and LoRAs, and install them into a WebUI."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from klora.lab import checkpoint, icons, train
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
    learn.add_argument("--steps", type=int, default=train.BASE_PLAN.steps, help="steps of the base training")
    learn.add_argument("--lora", choices=list(RECIPES), action="append", help="only this LoRA; repeatable")
    place = commands.add_parser("install", help="copy the model into a WebUI")
    place.add_argument("webui", type=Path, help="the WebUI's folder")
    place.add_argument("--weights", type=Path, default=WEIGHTS)
    return root


def main(arguments: list[str] | None = None) -> None:
    """Run a command."""
    chosen = parser().parse_args(arguments)
    if chosen.command == "install":
        print(checkpoint.install(chosen.weights, chosen.webui))
        return
    torch.set_num_threads(chosen.threads)
    names = tuple(chosen.lora or RECIPES)
    job = train.Job(chosen.cache, chosen.out, chosen.minutes, chosen.steps, names)
    train.run(job, tuple(chosen.stage or train.STAGES))


if __name__ == "__main__":
    main()
