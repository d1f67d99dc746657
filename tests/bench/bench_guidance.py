"""What it costs that a LoRA acts in one pass of the guidance alone: a branch beside the layers, or an
exchange.

    python -m tests.bench.bench_guidance [--rounds 5] [--size 16] [--width 320] [--rank 16] [--kind LoKr]

A step runs both passes of the guidance as rows of one batch. Sides, in turns, in one run: both rows alike;
a branch that takes the style from the unconditional row; the default's branch, which takes both LoRAs from
it; and two calls of one row with the weights of all the style's layers exchanged between them, which is
what remains without a branch. CPU seconds of a UNet of SD1.5's shape (at the default width), random numbers,
attention LoRAs; LoKr stands for the types without two factors. Printed are medians, the median of each
round's ratio to its first side (a machine is not equally fast from minute to minute; every other round goes
backwards), and what the branches hold in memory.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

from klora.files import read_lora
from klora.hosts.diffusers.seam import PipelineSeam, WeightedFile
from klora.schedule import LayerShares

_ATTENTION = re.compile(r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)")
CONTEXT = 768


def unet(width: int) -> Any:
    """SD1.5's UNet at ``width`` channels in its first level."""
    from diffusers import UNet2DConditionModel

    channels = (width, 2 * width, 4 * width, 4 * width)
    return UNet2DConditionModel(
        sample_size=64, block_out_channels=channels, cross_attention_dim=CONTEXT, attention_head_dim=8
    ).eval()


def lora(model: Any, path: Path, rank: int, seed: int, kind: str) -> Path:
    """A LoRA, or a LoKr of factors of 8 x 8, of the attention layers."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = {}
    for name, module in model.named_modules():
        if not _ATTENTION.fullmatch(name):
            continue
        out, inside = module.weight.shape
        if kind == "LoKr":
            tensors[f"lora_unet_{name.replace('.', '_')}.lokr_w1"] = normal(8, 8)
            tensors[f"lora_unet_{name.replace('.', '_')}.lokr_w2"] = normal(out // 8, inside // 8) / inside
        else:
            tensors[f"unet.{name}.lora_A.weight"] = normal(rank, inside) / inside
            tensors[f"unet.{name}.lora_B.weight"] = normal(out, rank)
    save_file(tensors, path)
    return path


def sides(model: Any, seam: PipelineSeam, size: int) -> dict[str, Callable[[], None]]:
    """A step by each of the ways."""
    names = [layer.name for layer in seam.layers()]
    latents, context = torch.randn(2, 4, size, size), torch.randn(2, 77, CONTEXT)

    def call(rows: slice) -> None:
        seam.branches.rows.tell(2, ((0, 1),))
        model(latents[rows], 500, context[rows])

    def with_shares(shares: LayerShares, rows: slice = slice(None)) -> None:
        seam.apply(dict.fromkeys(names, shares))
        call(rows)

    def exchanged() -> None:
        with_shares(LayerShares((1.0, 0.0)), slice(0, 1))
        with_shares(LayerShares((1.0, 1.0)), slice(1, 2))

    return {
        "both rows alike": lambda: call(slice(None)),
        "a branch": lambda: call(slice(None)),
        "the default's branch": lambda: call(slice(None)),
        "two calls and an exchange": exchanged,
    }


#: What is applied before the clock starts; the exchange does it within each step.
BEFORE = {
    "both rows alike": LayerShares((1.0, 1.0)),
    "a branch": LayerShares((1.0, 1.0), (1.0, 0.0)),
    "the default's branch": LayerShares((1.0, 1.0), (0.0, 0.0)),
    "two calls and an exchange": LayerShares((1.0, 1.0)),
}


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    for name, default in (("rounds", 5), ("size", 16), ("width", 320), ("rank", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--kind", choices=("LoRA", "LoKr"), default="LoRA")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = unet(options.width)
    with tempfile.TemporaryDirectory() as folder:
        files = [
            read_lora(lora(model, Path(folder) / f"{name}.safetensors", options.rank, seed, options.kind))
            for seed, name in enumerate(("content", "style"))
        ]
        seam = PipelineSeam(SimpleNamespace(unet=model), [WeightedFile(file, 1.0) for file in files])
        names = [layer.name for layer in seam.layers()]
        taken: dict[str, list[float]] = {}
        held = {}
        with seam.withheld(names):
            for number in range(options.rounds + 1):
                steps = list(sides(model, seam, options.size).items())
                for name, step in steps[:: -1 if number % 2 else 1]:
                    seam.apply(dict.fromkeys(names, BEFORE[name]))
                    step()  # forms what the branches add
                    held[name] = seam.branches.held_bytes()
                    began = time.process_time()
                    step()
                    if number:  # the first round warms up
                        taken.setdefault(name, []).append(time.process_time() - began)
    base = taken["both rows alike"]
    for name in BEFORE:
        median = statistics.median(taken[name])
        ratio = statistics.median(one / other for one, other in zip(taken[name], base, strict=True))
        memory = held[name] / 2**20
        print(f"{name:26}: median {median:.3f} s, ratio {ratio:.3f}, branches {memory:.0f} MiB")


if __name__ == "__main__":
    main()
