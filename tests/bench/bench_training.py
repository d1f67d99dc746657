"""What a step of the lab's training costs: Muon by shapes, and a second thread.

    python -m tests.bench.bench_training [--rounds 5]

``update``: the orthogonal updates of all of the denoiser's matrices, of one shape together and among Gram
matrices as the lab makes them, against each matrix alone by the iteration as it is published; one thread.
``threads``: a forward and backward pass of the denoiser and of the judge of things with one thread and with
two, which is why ``train --workers 2`` trains them beside one another. Both sides take turns; the least of
all rounds counts.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from klora.lab.judges import SubjectJudge
from klora.lab.model import CONTEXT, LATENT, build_denoiser
from klora.lab.training.base import BATCH
from klora.lab.training.judges import BATCH as JUDGED
from klora.lab.training.loop import orthogonal

Work = Callable[[], object]


def alone(update: Tensor) -> Tensor:
    """Newton-Schulz on one matrix [m, n] as published (Jordan, Muon, 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = update.shape[0] > update.shape[1]
    matrix = (update.T if tall else update) / (update.norm() + 1e-7)
    for _ in range(5):
        gram = matrix @ matrix.T
        matrix = a * matrix + (b * gram + c * gram @ gram) @ matrix
    return matrix.T if tall else matrix


def matrices() -> list[Tensor]:
    """A random update for each weight of the denoiser that Muon trains, [rows, the rest]."""
    weights = [p.flatten(1) for p in build_denoiser().parameters() if p.ndim >= 2 and p.numel() > 4096]
    return [torch.randn(weight.shape) for weight in weights]


def together(updates: list[Tensor]) -> list[Tensor]:
    """The same by shapes."""
    alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for update in updates:
        alike[update.shape].append(update)
    return [orthogonal(torch.stack(some)) for some in alike.values()]


def denoiser_pass() -> Work:
    """Forward and backward of a training batch of the denoiser."""
    network = build_denoiser()
    noisy, when, said = torch.randn(BATCH, *LATENT), torch.arange(BATCH), torch.randn(BATCH, 77, CONTEXT)
    return lambda: network(noisy, when, said).sample.square().mean().backward()


def judge_pass() -> Work:
    """Forward and backward of a training batch of the judge of things."""
    network, seen = SubjectJudge().things, torch.randn(JUDGED, 3, 64, 64)
    return lambda: network(seen).square().mean().backward()


def seconds(work: Work, threads: int) -> float:
    """One run of some work with so many threads."""
    torch.set_num_threads(threads)
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def compare(name: str, sides: dict[str, tuple[Work, int]], rounds: int) -> None:
    """Print the least seconds of both sides and their ratio; a first round warms up and does not count."""
    taken = [{side: seconds(*what) for side, what in sides.items()} for _ in range(rounds + 1)]
    least = {side: min(one[side] for one in taken[1:]) for side in sides}
    (first, before), (second, after) = least.items()
    print(f"{name}: {first} {before:.3f} s, {second} {after:.3f} s, {before / after:.2f} times as fast")


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    rounds = options.parse_args().rounds
    updates = matrices()
    sides: dict[str, tuple[Work, int]] = {
        "each alone": (lambda: [alone(update) for update in updates], 1),
        "by shapes": (lambda: together(updates), 1),
    }
    compare(f"update, {len(updates)} matrices", sides, rounds)
    for name, work in (("denoiser", denoiser_pass()), ("judge of things", judge_pass())):
        compare(f"{name}, a batch", {"one thread": (work, 1), "two": (work, 2)}, rounds)


if __name__ == "__main__":
    main()
