"""Making and scoring the pictures of a study, and gathering the scores into fronts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
from torch import Tensor

from klora.files import LoraFile, read_lora
from klora.lab import checkpoint, truth
from klora.lab.fronts.branches import Pair as Branches
from klora.lab.fronts.branches import pair_of
from klora.lab.fronts.calibration import calibration, effects
from klora.lab.fronts.dealing import Dealer, Dealt, by_the_engine, with_content_strength
from klora.lab.fronts.effects import by_effect
from klora.lab.fronts.methods import BALANCES, EFFECT, Method
from klora.lab.fronts.sampling import BATCH, Wanted, pictures
from klora.lab.fronts.statistics import Front, units
from klora.lab.fronts.store import Cell, Sampling, Scores, Store
from klora.lab.judges import judges_of
from klora.lab.model import Model
from klora.lab.pairs import Pair
from klora.lab.scoring import MEASURES, kind_and_things, score
from klora.lab.sharing import shared
from klora.planning import rewritten
from klora.settings import Settings

Files = tuple[LoraFile, LoraFile]
UNITS: dict[str, Callable[[Pair], str]] = {
    "subject": lambda pair: pair.content.subject,
    "pair": lambda pair: pair.name,
    "kind": lambda pair: kind_and_things(pair.content)[0],
}
"""What intervals may be over. Subjects of one kind may do well or badly together: where a kind is met twice,
intervals over kinds are the careful ones."""


@dataclass(frozen=True)
class Task:
    """One picture that is yet to be made."""

    method: Method
    cell: Cell


@dataclass
class Prepared:
    """A pair on the model: its files and branches by transform, its effects, what has been dealt already."""

    model: Model
    pair: Pair
    sampling: Sampling
    _rewritten: dict[Hashable, tuple[Files, Branches]] = field(default_factory=dict)
    _dealt: dict[tuple[Method, float], Dealt] = field(default_factory=dict)

    @cached_property
    def files(self) -> Files:
        """The two files as they are."""
        content, style = map(read_lora, self.pair.files)
        return content, style

    @cached_property
    def branches(self) -> Branches:
        """The branches as the files have them."""
        return pair_of(self.model.denoiser, *self.files)

    @cached_property
    def _by_effect(self) -> Dealer:
        return by_effect(effects(self.model, self.branches, self.pair.prompt, self.sampling.steps))

    def transformed(self, settings: Settings) -> tuple[Files, Branches]:
        """Files and branches after the transform of the settings."""
        key = rewriting(settings)
        if key not in self._rewritten:
            self._rewritten[key] = self._made(settings)
        return self._rewritten[key]

    def _made(self, settings: Settings) -> tuple[Files, Branches]:
        if not settings.chosen_transform.changes_pairs:
            return self.files, self.branches
        told = None
        if settings.chosen_transform.needs_calibration:
            prompts = (self.pair.content.trigger, self.pair.style.trigger)
            told = calibration(self.model, self.branches, prompts, _weights(settings))
        files = rewritten(*self.files, settings, told)
        return files, pair_of(self.model.denoiser, *files)

    def pictures(self, batch: Sequence[Task]) -> Tensor:
        """The pictures of tasks that have one transform, [n, 3, h, w] in bytes."""
        _, branches = self.transformed(batch[0].method.settings)
        guidance = self.sampling.guidance
        wanted = [Wanted(task.cell[1], self.dealt(task.method, task.cell[0]), guidance) for task in batch]
        return pictures(self.model, branches, self.pair.prompt, wanted, self.sampling.steps)

    def dealt(self, method: Method, balance: float) -> Dealt:
        """The shares of a method at a balance, in the order of the branches."""
        if (method, balance) not in self._dealt:
            deal = self._by_effect if method.contest == EFFECT else by_the_engine
            files, _ = self.transformed(method.settings)
            settings, sampling = method.at(balance).replace(transform="none"), self.sampling
            found = deal(*files, settings, sampling.steps, sampling.guidance)
            found = with_content_strength(found, method.content_e, sampling.guidance)
            self._dealt[method, balance] = found.ordered(self.branches.names)
        return self._dealt[method, balance]


def rewriting(settings: Settings) -> Hashable:
    """What a transform makes of a pair depends on this of the settings."""
    transform = settings.chosen_transform
    weights = _weights(settings) if transform.needs_calibration else None
    return transform.name, weights, *(settings.values[one.name] for one in transform.settings)


def _weights(settings: Settings) -> tuple[float, float]:
    return float(settings.content_weight), float(settings.style_weight)


@dataclass
class Study:
    """Methods on pairs: what is made is kept in ``store``."""

    store: Store
    methods: Sequence[Method]
    pairs: Sequence[Pair]
    seeds: Sequence[int]
    balances: tuple[float, ...] = BALANCES

    def open_tasks(self, pair: Pair) -> list[Task]:
        """What is yet to be made of a pair."""
        wanted = [(balance, seed) for balance in self.balances for seed in self.seeds]
        tasks = []
        for method in self.methods:
            kept = self.store.read(pair, method)
            tasks += [Task(method, cell) for cell in wanted if cell not in kept]
        return tasks

    def make(self, pair: Pair) -> Iterator[int]:
        """Make and score all that is missing of a pair, batch by batch; yields the number of each batch."""
        tasks = self.open_tasks(pair)
        if not tasks:
            return
        prepared = Prepared(checkpoint.model_of(self.store.sampling.weights), pair, self.store.sampling)
        for key in dict.fromkeys(rewriting(task.method.settings) for task in tasks):
            of_one = [task for task in tasks if rewriting(task.method.settings) == key]
            for start in range(0, len(of_one), BATCH):
                batch = of_one[start : start + BATCH]
                self._keep(pair, batch, prepared.pictures(batch))
                yield len(batch)

    def _keep(self, pair: Pair, batch: Sequence[Task], made: Tensor) -> None:
        weights = self.store.sampling.weights
        true = truth.drawings(weights / truth.NAME)[pair.content.name, pair.style.subject]
        found = score(judges_of(weights), pair.content, pair.style.subject, made, true)
        for method in dict.fromkeys(task.method for task in batch):
            new: dict[Cell, Scores] = {
                task.cell: {name: round(float(found[name][place]), 4) for name in MEASURES}
                for place, task in enumerate(batch)
                if task.method == method
            }
            self.store.add(pair, method, new)

    def front(self, method: Method, unit: str = "subject") -> Front:
        """The front of a method from the scores that are kept; ``unit`` is one of `UNITS`."""
        per_pair = []
        for pair in self.pairs:
            kept = self.store.read(pair, method)
            per_pair.append(
                [
                    [np.mean([kept[balance, seed][name] for seed in self.seeds]) for name in MEASURES]
                    for balance in self.balances
                ]
            )
        owners = [UNITS[unit](pair) for pair in self.pairs]
        return Front(method.name, self.balances, MEASURES, units(np.array(per_pair), owners))


def make_all(study: Study, workers: int = 1) -> None:
    """Make everything that is missing, in one process or, pair by pair, in several."""
    from tqdm import tqdm

    open_pairs = [pair for pair in study.pairs if study.open_tasks(pair)]
    total = sum(len(study.open_tasks(pair)) for pair in open_pairs)
    with tqdm(total=total, desc="pictures", unit="picture", smoothing=0.02, disable=not total) as bar:
        for count in shared(partial(_work, study), open_pairs, workers):
            bar.update(count)


def _work(study: Study, pair: Pair) -> int:
    return sum(study.make(pair))
