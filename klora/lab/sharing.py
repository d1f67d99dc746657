"""Work shared out to processes of one thread each, which for networks this small is faster than threads."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def shared(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """The results of work on items, in their order; each item is worked on once, by one process.

    With one worker it is done here. If work on an item fails, what has not begun is given up.
    """
    if workers == 1:
        yield from map(work, items)
        return
    start = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads in any state
    with ProcessPoolExecutor(workers, mp_context=start, initializer=_one_thread) as pool:
        try:
            yield from pool.map(work, items)
        finally:
            pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    torch.set_num_threads(1)
