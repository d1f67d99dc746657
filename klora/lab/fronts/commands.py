"""``python -m klora.lab benchmark``: run the study and report it."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from klora.errors import KloraError
from klora.files.writing import made_folder
from klora.lab.counts import check_counts
from klora.lab.fronts import methods, prediction, report, worlds
from klora.lab.fronts.statistics import Front
from klora.lab.fronts.store import Sampling, Store
from klora.lab.fronts.study import UNITS, Study, make_all
from klora.lab.pairs import GROUPS, HALVES, WORLDS, all_pairs, recipes_of
from klora.schedule import LARGEST_GUIDANCE_SCALE
from klora.settings import Settings

SEEDS = 2


def add_arguments(parser: ArgumentParser, default_weights: Path) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--world",
        choices=list(WORLDS),
        default=next(iter(WORLDS)),
        help="individuals of kinds that the base model knows, or, the hard case, strangers",
    )
    parser.add_argument(
        "--half",
        choices=list(GROUPS),
        default=HALVES[0],
        help=f"pairs to choose on, or those that are only reported (default: {HALVES[0]}); further ones need"
        " what train --further makes",
    )
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="such as 'K-LoRA keep=0.7'")
    parser.add_argument("--subjects", nargs="+", metavar="NAME")
    parser.add_argument("--leave-out", nargs="+", default=[], metavar="NAME", help="all subjects but these")
    parser.add_argument("--styles", nargs="+", metavar="NAME")
    parser.add_argument("--spread", type=int, help="each subject with so many styles, which rotate")
    parser.add_argument(
        "--unit", choices=list(UNITS), default=next(iter(UNITS)), help="what intervals are over"
    )
    parser.add_argument("--balances", nargs="+", type=float, default=list(methods.BALANCES))
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds of each pair (default: {SEEDS})")
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--weights", type=Path, default=default_weights, help="folder of the lab's weights")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("klora-out") / "benchmark",
        help="folder for scores and reports; what is scored there is not made again",
    )
    parser.add_argument("--workers", type=int, default=1, help="processes, each of one thread (default: 1)")
    parser.add_argument(
        "--predict",
        action="store_true",
        help="tell outcomes from files, in each world and over both, whose scores must have been made",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="draw the reports of both worlds in it, make nothing",
    )
    parser.add_argument("--list", action="store_true", help="list the study's methods and make nothing")


def run(chosen: Namespace) -> int:
    """Make what is missing and report; balances are chosen on the development half."""
    if chosen.list:
        print("\n".join(methods.study()))
        return 0
    if chosen.picture is not None:
        worlds.picture(
            [report.with_ending(_stem(chosen, world), ".json") for world in WORLDS], chosen.picture
        )
        return 0
    _check_numbers(chosen)
    if chosen.predict:
        return _predict(chosen)
    study = _study(chosen, chosen.world, chosen.half)
    kept = chosen.out / f"choice-{chosen.world}-{chosen.guidance_scale:g}.json"
    if chosen.half != HALVES[0]:
        _check_choice(study, kept)
    made_folder(chosen.out)
    make_all(study, chosen.workers)
    fronts = report.with_originals([study.front(method, chosen.unit) for method in study.methods])
    choice = _chosen_on(fronts, kept) if chosen.half == HALVES[0] else _kept_choice(kept)
    there = {front.method for front in fronts}
    references = [name for name in (choice.added, *methods.PUBLISHED.values()) if name in there]
    made = report.rows(fronts, choice.balances, references)
    title = f"{chosen.world.capitalize()}, {chosen.half} half, guidance {chosen.guidance_scale:g}"
    print(report.table(made))
    written = report.write(made, fronts, references, title, _stem(chosen, chosen.world))
    print("written: " + ", ".join(map(str, written)))
    return 0


def _check_numbers(chosen: Namespace) -> None:
    """Raise `KloraError` for a number that no picture can be made with; asked before the first is made."""
    check_counts(chosen, "seeds", "steps", "workers", "spread")
    if not 0 <= chosen.guidance_scale <= LARGEST_GUIDANCE_SCALE:  # also refuses NaN
        raise KloraError(
            f"--guidance-scale is {chosen.guidance_scale:g}; write a number from 0 to "
            f"{LARGEST_GUIDANCE_SCALE:g}."
        )
    for balance in chosen.balances:
        Settings.declaration("balance").parse(balance)


def _stem(chosen: Namespace, world: str) -> Path:
    """Where the report of a world lies, without its ending."""
    folder: Path = chosen.out
    return folder / f"{world}-{chosen.half}-{chosen.guidance_scale:g}"


def _study(chosen: Namespace, world: str, half: str) -> Study:
    """The study that the arguments ask for, on a half of a world."""
    sampling = Sampling(chosen.weights, chosen.guidance_scale, chosen.steps)
    names = dict.fromkeys(chosen.methods or methods.study())
    recipes_of(WORLDS[world], half, chosen.leave_out)  # refuses an unknown name
    pairs = [
        pair
        for pair in all_pairs(world, half, sampling.loras, chosen.subjects, chosen.styles, chosen.spread)
        if pair.content.subject not in chosen.leave_out
    ]
    if not pairs:
        raise KloraError("--leave-out leaves no subject; leave out fewer.")
    return Study(
        Store(chosen.out / "scores", sampling),
        [methods.method(name) for name in names],
        pairs,
        range(chosen.seeds),
        tuple(chosen.balances),
    )


def _predict(chosen: Namespace) -> int:
    """Whether the outcome of each named method can be told beforehand, in each world and over both together;
    its scores must have been made.
    """
    studies = {world: [_study(chosen, world, half) for half in HALVES] for world in WORLDS}
    for world, halves in studies.items():
        missing = sum(len(study.open_tasks(pair)) for study in halves for pair in study.pairs)
        if missing:
            raise KloraError(
                f"{missing} pictures of these methods are not made yet with {world}; run both halves first."
            )
    balances = studies[chosen.world][0].balances
    for method in studies[chosen.world][0].methods:
        known = {
            world: [prediction.known_of(study, method) for study in halves]
            for world, halves in studies.items()
        }
        known["both worlds"] = [prediction.together(halves) for halves in zip(*known.values(), strict=True)]
        for world, (development, test) in known.items():
            found = prediction.predict(development, test, balances)
            print(f"## {method.name}, {world}\n\n{prediction.told(found)}\n")
    return 0


@dataclass(frozen=True)
class Choice:
    """What was chosen on the development half: every method's balance, and the best way of adding."""

    balances: dict[str, float]
    added: str | None


def _chosen_on(fronts: Sequence[Front], path: Path) -> Choice:
    """The choice that the development half makes; kept for the test half."""
    balances = report.chosen_balances(fronts)
    added = report.best_added(fronts, balances)
    path.write_text(json.dumps({"balances": balances, "added": added}, indent=1) + "\n", encoding="utf-8")
    return Choice(report.with_zeros(balances), added)


def _kept_choice(path: Path) -> Choice:
    """The choice that was made on the development half."""
    if not path.exists():
        raise KloraError(f"nothing is chosen yet; run the {HALVES[0]} half of this world and guidance first.")
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        balances = {name: float(balance) for name, balance in told["balances"].items()}
        added = None if told["added"] is None else str(told["added"])
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise KloraError(
            f"{path.name} in {path.parent} is damaged; run the {HALVES[0]} half of this world again."
        ) from error
    return Choice(report.with_zeros(balances), added)


def _check_choice(study: Study, path: Path) -> None:
    """That each method can be reported at a balance chosen for it; asked before hours of pictures."""
    balances = _kept_choice(path).balances
    shown = [method.name for method in study.methods]
    unknown = [name for name in shown if name not in balances]
    if unknown:
        raise KloraError(
            f"the balance of {', '.join(unknown)} is not chosen yet; run the {HALVES[0]} half first."
        )
    missing = sorted({balances[name] for name in shown} - set(study.balances))
    if missing:
        raise KloraError(
            f"the {HALVES[0]} half chose balances that this run leaves out: add"
            f" {' '.join(f'{balance:g}' for balance in missing)} to --balances."
        )
