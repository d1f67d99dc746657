"""``python -m klora.lab.world2``: train world 2, stage by stage; goes on where it stopped."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from klora.lab import icons
from klora.lab.world2 import train


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="python -m klora.lab.world2", description=__doc__)
    root.add_argument("--stage", choices=list(train.STAGES), action="append", help="only this; repeatable")
    root.add_argument("--cache", type=Path, default=icons.default_cache(), help="downloads and checkpoints")
    root.add_argument("--out", type=Path, required=True, help="folder for the finished weights")
    root.add_argument("--minutes", type=float, default=math.inf, help="stop each training after this time")
    root.add_argument("--threads", type=int, default=1, help="one is steadier on a busy machine")
    return root


def main() -> None:
    """Run the stages."""
    chosen = parser().parse_args()
    torch.set_num_threads(chosen.threads)
    job = train.Job(chosen.cache, chosen.out, chosen.minutes)
    train.run(job, tuple(chosen.stage or train.STAGES))


if __name__ == "__main__":
    main()
