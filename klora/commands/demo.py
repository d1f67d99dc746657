"""``python -m klora demo``: the main job on the pair of LoRAs that ships with the package."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from klora.commands import plan
from klora.demo import CONTENT, STYLE

SUMMARY = "plan two LoRAs that come with the package, or yours, and write the picture of what wins where"


def add_arguments(parser: ArgumentParser) -> None:
    """Those of ``plan``, with defaults for the files."""
    parser.add_argument("content", nargs="?", default=str(CONTENT), help="LoRA file of the subject")
    parser.add_argument("style", nargs="?", default=str(STYLE), help="LoRA file of the style")
    parser.add_argument("--steps", type=int, default=20, help="number of sampling steps (default: 20)")
    parser.add_argument(
        "--out", default="klora-out", metavar="FOLDER", help="where to write (default: klora-out)"
    )
    plan.add_rule_options(parser)


def run(arguments: Namespace) -> int:
    """Plan the pair, write ``plan.png`` and ``plan.json``, and say where they are."""
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    arguments.picture, arguments.json = str(out / "plan.png"), str(out / "plan.json")
    status = plan.run(arguments)
    print(f"The picture of what wins where: {arguments.picture}\nThe same as data: {arguments.json}")
    return status
