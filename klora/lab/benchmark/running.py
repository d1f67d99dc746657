"""Making all pictures of a benchmark that are not kept yet, in one process or in several."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch

from klora.lab.benchmark.making import Maker, Sampling, Store
from klora.lab.benchmark.methods import Method
from klora.lab.pairs import Pair


@dataclass(frozen=True)
class Job:
    """The pictures that one batch makes: one pair, one method, several seeds."""

    pair: Pair
    method: Method
    seeds: tuple[int, ...]


def open_jobs(
    store: Store, pairs: Sequence[Pair], methods: Sequence[Method], seeds: Sequence[int]
) -> list[Job]:
    """What is yet to be made; methods that come to the same for a pair are made once."""
    jobs: dict[Path, Job] = {}
    for pair in pairs:
        for method in methods:
            if method.is_truth or store.path(pair, method) in jobs:
                continue
            missing = store.missing(pair, method, seeds)
            if missing:
                jobs[store.path(pair, method)] = Job(pair, method, tuple(missing))
    return list(jobs.values())


_makers: dict[Sampling, Maker] = {}


def _work(folder: Path, sampling: Sampling, job: Job) -> int:
    """Do one job in this process, with the model that it has loaded; return the number of pictures."""
    maker = _makers.setdefault(sampling, Maker(sampling))
    Store(folder, sampling).add(job.pair, job.method, job.seeds, maker.make(job.pair, job.method, job.seeds))
    return len(job.seeds)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _finished(folder: Path, sampling: Sampling, jobs: Sequence[Job], workers: int) -> Iterator[int]:
    """Do all jobs; yields the number of pictures of each as it is done."""
    if workers == 1:
        for job in jobs:
            yield _work(folder, sampling, job)
        return
    start = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads in any state
    with ProcessPoolExecutor(workers, mp_context=start, initializer=_one_thread) as pool:
        futures = [pool.submit(_work, folder, sampling, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def make_all(
    folder: Path,
    sampling: Sampling,
    pairs: Sequence[Pair],
    methods: Sequence[Method],
    seeds: Sequence[int],
    workers: int = 1,
) -> Store:
    """Make what is not kept in ``folder`` yet; every batch is kept as soon as it is done."""
    from tqdm import tqdm

    store = Store(folder, sampling)
    jobs = open_jobs(store, pairs, methods, seeds)
    total = sum(len(job.seeds) for job in jobs)
    with tqdm(total=total, desc="pictures", unit="picture", disable=not jobs, smoothing=0.02) as bar:
        for made in _finished(folder, sampling, jobs, workers):
            bar.update(made)
    return store
