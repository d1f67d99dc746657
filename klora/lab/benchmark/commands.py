"""``python -m klora.lab benchmark``: the command line."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from klora.errors import KloraError
from klora.lab import pairs, samples
from klora.lab.benchmark import methods, report, running, scoring, weights
from klora.lab.benchmark.making import Sampling
from klora.lab.benchmark.results import evaluate
from klora.lab.benchmark.validation import checks

SEEDS = 8


def add_arguments(parser: ArgumentParser, default_weights: Path) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--half",
        choices=list(pairs.HALVES),
        default="development",
        help="subjects for choosing defaults, or those that are only reported (default: development)",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="names; also 'added 0.7+0.9', 'K-LoRA alpha=2 top_k=64'",
    )
    parser.add_argument("--list", action="store_true", help="list the methods and make nothing")
    parser.add_argument(
        "--subjects", nargs="+", metavar="NAME", help="content LoRAs (default: the whole half)"
    )
    parser.add_argument(
        "--styles", nargs="+", metavar="NAME", help="style LoRAs (default: one for each held-out style)"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds of each pair (default: {SEEDS})")
    parser.add_argument("--steps", type=int, default=samples.STEPS, help="sampling steps")
    parser.add_argument("--guidance", type=float, default=samples.GUIDANCE)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("klora-out") / "benchmark",
        help="folder for pictures and reports; what lies there is not made again",
    )
    parser.add_argument("--workers", type=int, default=1, help="processes, each of one thread (default: 1)")
    parser.add_argument("--weights", type=Path, default=default_weights, help="folder of the lab's weights")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the Markdown report here too")
    parser.add_argument(
        "--find-weights",
        action="store_true",
        help="search the best fixed weights for adding on the development half, and keep them",
    )


def run(chosen: Namespace) -> int:
    """Make what is missing, score, report; exit status 1 if a check of the scores does not hold."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # for the other processes too
    if chosen.list:
        print("\n".join(f"{one.name:24}{one.note}".rstrip() for one in methods.TABLE.values()))
        return 0
    for name in ("seeds", "steps", "workers"):
        if getattr(chosen, name) < 1:
            raise KloraError(f"--{name} is {getattr(chosen, name)}; write a number of at least 1.")
    sampling = Sampling(chosen.weights, chosen.steps, chosen.guidance)
    found = pairs.all_pairs(chosen.half, chosen.weights / "loras", chosen.subjects, chosen.styles)
    seeds = tuple(range(chosen.seeds))
    if chosen.find_weights:
        return _find_weights(chosen, sampling, found, seeds)
    wanted = methods.methods(chosen.methods)
    store = running.make_all(chosen.out, sampling, found, wanted, seeds, chosen.workers)
    results = evaluate(scoring.score_all(store, found, wanted, seeds), found)
    told = report.Run(chosen.half, found, wanted, seeds, sampling)
    written = report.write(told, results, store, chosen.out, chosen.table)
    print(report.markdown(told, results))
    print("written: " + ", ".join(map(str, written)))
    return 0 if all(one.holds for one in checks(results)) else 1


def _find_weights(
    chosen: Namespace, sampling: Sampling, found: list[pairs.Pair], seeds: tuple[int, ...]
) -> int:
    if chosen.half != "development":
        raise KloraError("weights are searched on the development half only; the test half is only reported.")
    best = weights.find(chosen.out, sampling, found, seeds, chosen.workers)
    weights.write(best)
    print(f"best fixed weights: content {best['content']}, style {best['style']}, in {methods.FIXED_WEIGHTS}")
    return 0
