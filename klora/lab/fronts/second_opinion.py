"""``python -m klora.lab crosscheck``: what the judges and an eye that nobody here trained say of the same
pictures.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from klora.lab import checkpoint, truth
from klora.lab.counts import check_counts
from klora.lab.fronts import crosscheck, methods
from klora.lab.fronts.crosscheck import Eye, agreement
from klora.lab.fronts.report import markdown
from klora.lab.fronts.store import Sampling
from klora.lab.fronts.study import Prepared, Task
from klora.lab.judges import judges_of
from klora.lab.pairs import GROUPS, WORLDS, Pair, all_pairs, has_pairs
from klora.lab.scoring import score

NAMES: tuple[str, ...] = (methods.DEFAULT, "weights guidance=none", "weights", "K-LoRA")
"""The methods whose pictures are shown to both, each at balance 0."""


@dataclass(frozen=True)
class Opinion:
    """What judges and eye say of pictures [n]: for each 1 where it is right, 0 where not."""

    subject: Tensor
    style: Tensor

    @property
    def both(self) -> float:
        """Share of pictures with subject and style right."""
        return float((self.subject * self.style).mean())


Opinions = tuple[Opinion, Opinion]
"""The judges', then the eye's."""


def add_arguments(parser: ArgumentParser, default_weights: Path) -> None:
    """Declare the arguments."""
    parser.add_argument("--half", choices=list(GROUPS), default="test", help="which pairs (default: test)")
    parser.add_argument(
        "--spread", type=int, default=1, help="each subject with so many styles, which rotate (default: 1)"
    )
    parser.add_argument("--seeds", type=int, default=1, help="seeds of each pair (default: 1)")
    parser.add_argument("--weights", type=Path, default=default_weights, help="folder of the lab's weights")


def run(chosen: Namespace) -> int:
    """Make the pictures, ask both, and print what they say and how far they agree."""
    from tqdm import tqdm

    check_counts(chosen, "seeds", "spread")
    eye, sampling = crosscheck.efficientnet(), Sampling(chosen.weights)
    pairs = {world: _pairs(chosen, world) for world in WORLDS}
    told: dict[str, dict[str, list[Opinions]]] = {}
    with tqdm(total=sum(map(len, pairs.values())), desc="pairs", unit="pair") as bar:
        for world, of_world in pairs.items():
            told[world] = {name: [] for name in NAMES}
            for pair in of_world:
                for name, opinions in asked(eye, sampling, pair, range(chosen.seeds)).items():
                    told[world][name].append(opinions)
                bar.update()
    print(report({world: of_world for world, of_world in told.items() if pairs[world]}))
    return 0


def _pairs(chosen: Namespace, world: str) -> list[Pair]:
    """The pairs of a world; none where a half has no subject of it."""
    if not has_pairs(world, chosen.half):
        return []
    return all_pairs(world, chosen.half, chosen.weights / "loras", spread=chosen.spread)


def asked(eye: Eye, sampling: Sampling, pair: Pair, seeds: Sequence[int]) -> dict[str, Opinions]:
    """What both say of a pair's pictures by the name of each method; the pictures are the same for both."""
    prepared = Prepared(checkpoint.model_of(sampling.weights), pair, sampling)
    tasks = [Task(methods.method(name), (0.0, seed)) for name in NAMES for seed in seeds]
    made = prepared.pictures(tasks).split(len(seeds))
    return {name: _opinions(eye, sampling, pair, some) for name, some in zip(NAMES, made, strict=True)}


def _opinions(eye: Eye, sampling: Sampling, pair: Pair, made: Tensor) -> Opinions:
    path = sampling.weights / truth.NAME
    true = truth.drawings(path)[pair.content.name, pair.style.subject]
    judged = score(judges_of(sampling.weights), pair.content, pair.style.subject, made, true)
    seen = crosscheck.name(eye, pair, made, path)
    return (
        Opinion(judged["identity"], judged["style"]),
        Opinion(seen.subject.float(), seen.style.float()),
    )


def _together(opinions: Sequence[Opinions]) -> Opinions:
    """The opinions of many pairs as those of all their pictures."""
    judges, eye = (
        Opinion(torch.cat([one.subject for one in side]), torch.cat([one.style for one in side]))
        for side in zip(*opinions, strict=True)
    )
    return judges, eye


def report(told: dict[str, dict[str, list[Opinions]]]) -> str:
    """Shares of pictures with both right by either, world by world, and how far they agree over all, as
    Markdown; ``told`` has what is said of each pair by world and method.
    """
    shares = [
        [methods.AS_DEFAULT.get(name, name), world, f"{judges.both:.3f}", f"{eye.both:.3f}"]
        for world, by_method in told.items()
        for name, opinions in by_method.items()
        for judges, eye in [_together(opinions)]
    ]
    judges, eye = _together([one for of in told.values() for each in of.values() for one in each])
    agreed = [
        ("subject", agreement(judges.subject, eye.subject)),
        ("style", agreement(judges.style, eye.style)),
    ]
    head = ["both right", "world", "judges", "eye"]
    return f"{markdown(head, shares)}\n\n{crosscheck.table(agreed)}"
