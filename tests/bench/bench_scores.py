"""What scoring a pair costs, against the bare work that no implementation can avoid.

    python tests/bench/bench_scores.py CONTENT STYLE

Bare: form up @ down of every contested layer of both files, take the absolute values, one Top-K. Both sides
run in one process, in turns, and CPU time is measured, so that other programs on the machine disturb neither.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from klora.files import read_lora
from klora.planning import contested_layers, score_files
from klora.settings import Settings

ROUNDS = 5


def cpu_seconds(action: Callable[[], object]) -> float:
    before = time.process_time()
    action()
    return time.process_time() - before


def bare(pairs: list[tuple[torch.Tensor, torch.Tensor, int]]) -> None:
    for up, down, k in pairs:
        magnitudes = (up @ down).abs().flatten()
        torch.topk(magnitudes, min(k, magnitudes.numel())).values.sum()


def main(content_path: str, style_path: str) -> None:
    torch.set_num_threads(1)
    content, style = read_lora(content_path), read_lora(style_path)
    pairs = []
    for layer in contested_layers(content, style, "fuse"):
        assert layer.content is not None
        assert layer.style is not None
        k = (layer.content.rank or 1) * (layer.style.rank or 1)
        for side in (layer.content, layer.style):
            factors = (side.tensor(f"lora_{one}.weight").float().flatten(1) for one in ("up", "down"))
            pairs.append((*factors, k))
    rounds = [
        (cpu_seconds(lambda: bare(pairs)), cpu_seconds(lambda: score_files(content, style, Settings())))
        for _ in range(ROUNDS)
    ]
    floor, ours = (min(times) for times in zip(*rounds, strict=True))
    print(f"{len(pairs) // 2} layers, CPU seconds, best of {ROUNDS}, one thread")
    print(f"bare   {floor:.3f}  (form, absolute, one Top-K)")
    print(f"scores {ours:.3f}  (read, form, check, total, Top-K)")
    print(f"ratio  {ours / floor:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
