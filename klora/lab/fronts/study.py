"""Making and scoring the pictures of a study, and gathering the scores into fronts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from klora.lab import checkpoint
from klora.lab.fronts.branches import Pair as Branches
from klora.lab.fronts.branches import pair_of
from klora.lab.fronts.dealing import Dealer, Dealt, by_the_engine
from klora.lab.fronts.methods import BALANCES, Method
from klora.lab.fronts.sampling import BATCH, Wanted, pictures
from klora.lab.fronts.statistics import Front, units
from klora.lab.fronts.store import JUDGES, Cell, Scores, Store
from klora.lab.model import SECOND, Model
from klora.lab.world2 import truth
from klora.lab.world2.judges import Judges
from klora.lab.world2.pairs import Pair
from klora.lab.world2.scoring import MEASURES, score


@dataclass(frozen=True)
class Task:
    """One picture that is yet to be made."""

    method: Method
    cell: Cell


@dataclass
class Study:
    """Methods on pairs: what is made is kept in ``store``."""

    store: Store
    methods: Sequence[Method]
    pairs: Sequence[Pair]
    seeds: Sequence[int]
    balances: tuple[float, ...] = BALANCES
    dealer: Dealer = by_the_engine
    _branches: dict[str, Branches] = field(default_factory=dict)

    @cached_property
    def model(self) -> Model:
        """The model, loaded when first needed."""
        weights = self.store.sampling.weights
        return checkpoint.load(weights / f"{checkpoint.NAME}.safetensors", SECOND)

    @cached_property
    def judges(self) -> Judges:
        """The judges, loaded when first needed."""
        return Judges.load(self.store.sampling.weights / JUDGES)

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
        branches = pair_of(self.model.denoiser, *pair.files) if tasks else None
        dealt: dict[tuple[str, float], Dealt] = {}
        for start in range(0, len(tasks), BATCH):
            assert branches is not None
            batch = tasks[start : start + BATCH]
            wanted = [self._wanted(pair, branches, task, dealt) for task in batch]
            self._keep(pair, branches, batch, wanted)
            yield len(batch)

    def _wanted(
        self, pair: Pair, branches: Branches, task: Task, dealt: dict[tuple[str, float], Dealt]
    ) -> Wanted:
        sampling, (balance, seed) = self.store.sampling, task.cell
        key = (task.method.name, balance)
        if key not in dealt:
            settings = task.method.at(balance)
            found = self.dealer(*pair.files, settings, sampling.steps, sampling.guidance)
            dealt[key] = found.ordered(branches.names)
        return Wanted(seed, dealt[key], sampling.guidance)

    def _keep(self, pair: Pair, branches: Branches, batch: Sequence[Task], wanted: Sequence[Wanted]) -> None:
        sampling = self.store.sampling
        made = pictures(self.model, branches, pair.prompt, wanted, sampling.steps)
        true = truth.drawings(sampling.weights / truth.NAME)[pair.content.name, pair.style.subject]
        found = score(self.judges, pair.content, pair.style.subject, made, true)
        for method in dict.fromkeys(task.method for task in batch):
            new: dict[Cell, Scores] = {
                task.cell: {name: round(float(found[name][place]), 4) for name in MEASURES}
                for place, task in enumerate(batch)
                if task.method == method
            }
            self.store.add(pair, method, new)

    def front(self, method: Method, unit: str = "subject") -> Front:
        """The front of a method from the scores that are kept; ``unit`` is ``subject`` or ``pair``."""
        per_pair = []
        for pair in self.pairs:
            kept = self.store.read(pair, method)
            per_pair.append(
                [
                    [np.mean([kept[balance, seed][name] for seed in self.seeds]) for name in MEASURES]
                    for balance in self.balances
                ]
            )
        owners = [pair.content.subject if unit == "subject" else pair.name for pair in self.pairs]
        return Front(method.name, self.balances, MEASURES, units(np.array(per_pair), owners))


def make_all(study: Study) -> None:
    """Make everything that is missing, with a bar."""
    from tqdm import tqdm

    total = sum(len(study.open_tasks(pair)) for pair in study.pairs)
    with tqdm(total=total, desc="pictures", unit="picture", smoothing=0.02, disable=not total) as bar:
        for pair in study.pairs:
            for count in study.make(pair):
                bar.update(count)
