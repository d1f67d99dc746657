"""``python -m klora.lab``: train the lab's model, judges and LoRAs, compare methods, install into a WebUI."""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path

import torch

from klora.__main__ import answered, write_what_the_console_can
from klora.errors import KloraError
from klora.lab import checkpoint
from klora.lab.counts import check_counts
from klora.lab.fronts import commands as benchmark
from klora.lab.fronts import second_opinion as crosscheck
from klora.lab.training import further, stages
from klora.lab.world import icons

WEIGHTS = Path(__file__).parent / "weights"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="python -m klora.lab", description=__doc__)
    commands = root.add_subparsers(dest="command", required=True)
    learn = commands.add_parser("train", help="train from the icon sets; goes on where it stopped")
    learn.add_argument(
        "--stage", choices=list(stages.STAGES), action="append", help="only this stage; repeatable"
    )
    learn.add_argument("--cache", type=Path, default=icons.default_cache(), help="downloads and checkpoints")
    learn.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the finished weights")
    learn.add_argument("--threads", type=int, default=1, help="one is steadier on a busy machine")
    learn.add_argument("--minutes", type=float, default=math.inf, help="stop each training after this time")
    learn.add_argument(
        "--workers",
        type=int,
        default=1,
        help="processes, each of one thread, for what can be trained at the same time, above all the LoRAs",
    )
    learn.add_argument(
        "--rehearse",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="do this share of every training's steps, such as 0.002, to see that all stages run",
    )
    learn.add_argument(
        "--further",
        action="store_true",
        help="train LoRAs of further individuals instead, in an --out of its own, for --half further",
    )
    place = commands.add_parser("install", help="copy the model into a WebUI")
    place.add_argument("webui", type=Path, help="the WebUI's folder")
    place.add_argument("--weights", type=Path, default=WEIGHTS)
    compare = commands.add_parser("benchmark", help="compare methods of fusion over their whole balance")
    benchmark.add_arguments(compare, WEIGHTS)
    asked = commands.add_parser("crosscheck", help="ask an ImageNet network what the judges say of pictures")
    crosscheck.add_arguments(asked, WEIGHTS)
    return root


def main(arguments: list[str] | None = None) -> int:
    """Run a command; bad input is one line on stderr and exit status 2."""
    write_what_the_console_can()
    chosen = parser().parse_args(arguments)
    return answered(lambda: _run(chosen))


def _run(chosen: argparse.Namespace) -> int:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # for the other processes too
    if chosen.command == "install":
        print(checkpoint.install(chosen.weights, chosen.webui))
        return 0
    if chosen.command == "benchmark":
        torch.set_num_threads(1)
        return benchmark.run(chosen)
    if chosen.command == "crosscheck":
        return crosscheck.run(chosen)
    check_counts(chosen, "threads", "workers")
    _check_rehearsal(chosen)
    torch.set_num_threads(chosen.threads)
    job = stages.Job(chosen.cache, chosen.out, chosen.minutes, chosen.workers, chosen.rehearse)
    if chosen.further:
        _check_further(chosen)
        further.run(job, WEIGHTS)
    else:
        stages.run(job, tuple(chosen.stage or stages.STAGES))
    return 0


def _check_further(chosen: argparse.Namespace) -> None:
    """Further LoRAs must neither land among the lab's nor have a part of their stages left out unheard."""
    if chosen.out == WEIGHTS:
        raise KloraError("--further needs an --out of its own: its LoRAs are not the lab's.")
    if chosen.stage:
        raise KloraError("--further runs stages of its own; leave out --stage.")


def _check_rehearsal(chosen: argparse.Namespace) -> None:
    """A rehearsal must neither overwrite the lab's weights nor be taken for the start of a training."""
    if not 0 < chosen.rehearse <= 1:
        raise KloraError(f"--rehearse is {chosen.rehearse}; write a number above 0, up to 1.")
    if chosen.rehearse < 1 and (chosen.out == WEIGHTS or chosen.cache == icons.default_cache()):
        raise KloraError("a rehearsal learns nothing: give it a --cache and an --out of its own.")


if __name__ == "__main__":
    sys.exit(main())
