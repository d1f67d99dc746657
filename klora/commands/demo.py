"""``python -m klora demo``: subjects and styles of the lab, put together in every way, at one glance."""

from __future__ import annotations

import importlib.util
import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from klora.commands import plan
from klora.errors import KloraError, SettingsError
from klora.files.writing import made_folder

#: Module -> what pip calls it; all are in the extra "lab".
NEEDED = {"diffusers": "diffusers", "transformers": "transformers", "PIL": "pillow", "scipy": "scipy"}
MOST_SEEDS = 16
#: The largest seed that a WebUI has.
LAST_SEED = 2**32 - 1


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments; the options of the rule are those of ``plan``."""
    parser.add_argument(
        "--content", metavar="NAME", nargs="+", default=[], help="subjects (default: the first three)"
    )
    parser.add_argument(
        "--style", metavar="NAME", nargs="+", default=[], help="styles (default: the first two)"
    )
    parser.add_argument(
        "--hard",
        action="store_true",
        help="subjects that the model does not know even by kind; without --content",
    )
    parser.add_argument("--list", action="store_true", help="list the LoRAs and make nothing")
    parser.add_argument("--prompt", metavar="TEXT", help="prompt (default: both trigger words)")
    parser.add_argument("--seed", type=int, default=0, help="seed of each pair's first row (default: 0)")
    parser.add_argument(
        "--seeds", type=int, default=1, help="rows of each pair, each with the next seed (default: 1)"
    )
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
        demo.check_weights(weights)
        for kind, names in demo.names(weights).items():
            print(f"{kind}: {', '.join(names) or 'none'}")
        return 0
    demo.settle_threads()
    pairs = demo.choose_pairs(arguments.content, arguments.style, weights, arguments.hard)
    folder = made_folder(arguments.out)
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    rows = demo.run(pairs, settings, seeds, prompt=arguments.prompt, steps=arguments.steps, weights=weights)
    places = demo.save(rows, demo.plan_of(pairs[0], settings, arguments.steps), folder)
    print(f"{', '.join(pair.name for pair in pairs)}\n\n{demo.table(rows)}\n")
    print(f"The pictures, beside the true drawings: {places['pictures']}")
    print(f"What wins where in {pairs[0].name}: {places['plan']}")
    return 0


def _check(arguments: Namespace) -> None:
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise KloraError(
            f'the demo needs {", ".join(missing)}, not installed yet; run: python -m pip install -e ".[lab]"'
        )
    bounds = {"steps": (1, plan.MOST_STEPS), "seeds": (1, MOST_SEEDS), "seed": (0, LAST_SEED)}
    for name, (least, most) in bounds.items():
        value = getattr(arguments, name)
        if not least <= value <= most:
            raise SettingsError(f"K-LoRA: {name} is {value}; write a number from {least} to {most}.")
