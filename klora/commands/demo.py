"""``python -m klora demo``: a subject LoRA and a style LoRA of the lab, put together in every way."""

from __future__ import annotations

import importlib.util
import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from klora.commands import plan
from klora.errors import KloraError, SettingsError

#: Module -> what pip calls it; all are in the extra "lab".
NEEDED = {"diffusers": "diffusers", "transformers": "transformers", "PIL": "pillow"}
MOST_SEEDS = 16


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments; the options of the rule are those of ``plan``."""
    parser.add_argument("--content", metavar="NAME", help="the subject's LoRA (default: frog)")
    parser.add_argument("--style", metavar="NAME", help="the style's LoRA (default: riso)")
    parser.add_argument("--list", action="store_true", help="list the LoRAs and make nothing")
    parser.add_argument("--prompt", metavar="TEXT", help="prompt (default: both trigger words)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first row (default: 0)")
    parser.add_argument("--seeds", type=int, default=4, help="rows, each with the next seed (default: 4)")
    parser.add_argument("--steps", type=int, default=20, help="number of sampling steps (default: 20)")
    parser.add_argument(
        "--out", default="klora-out", metavar="FOLDER", help="where to write (default: klora-out)"
    )
    parser.add_argument(
        "--weights", type=Path, metavar="FOLDER", help="the lab's weights (default: embedded)"
    )
    plan.add_rule_options(parser)


def run(arguments: Namespace) -> int:
    """Make the pictures, write ``demo.png`` and ``plan.png``, print the scores and where the files are."""
    settings = plan.settings_of(arguments)
    _check(arguments)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of image processors not used here
    from klora.lab import demo  # late: it needs the extra

    weights = arguments.weights or demo.WEIGHTS
    if arguments.list:
        for role in ("content", "style"):
            print(f"{role}: {', '.join(demo.names(role, weights)) or 'none'}")
        return 0
    demo.settle_threads()
    pair = demo.choose_pair(arguments.content, arguments.style, weights)
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    made = demo.run(pair, settings, seeds, prompt=arguments.prompt, steps=arguments.steps, weights=weights)
    places = demo.save(made, Path(arguments.out))
    print(f"{pair.name}, prompt: {made.prompt}\n\n{demo.table(made)}\n")
    print(f"The pictures, beside the true drawing: {places['pictures']}")
    print(f"What wins where with {settings.schedule}: {places['plan']}")
    return 0


def _check(arguments: Namespace) -> None:
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise KloraError(
            f'the demo needs {", ".join(missing)}, not installed yet; run: python -m pip install -e ".[lab]"'
        )
    for name, most in (("steps", plan.MOST_STEPS), ("seeds", MOST_SEEDS)):
        value = getattr(arguments, name)
        if not 1 <= value <= most:
            raise SettingsError(f"K-LoRA: {name} is {value}; write a number from 1 to {most}.")
