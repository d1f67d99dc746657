"""What a WebUI takes for the scores of a pair: the first time, and again after a restart, from disk.

    python -m tests.bench.bench_kept [--rounds 3] [--rank 32]

An SDXL-shaped attention pair (560 linears, fp16) as AUTOMATIC1111's networks of it would be, through the
seam of its adapter. Each measurement is the first work of a process of its own, both sides take turns, the
least of all rounds counts. ``first`` hashes both files, scores, and keeps; ``again`` has what an earlier
process kept. The bound of ``again`` is 0.1 s.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from klora.hosts.a1111.seam import A1111Seam
from klora.options import TopK
from klora.planning import keep_scores_in, scores_of
from klora.scores import TOP_K_SUM, TOTAL
from tests.bench.child import measured_apart
from tests.bench.models import sdxl_attention, write_lora

SIDES = ("first", "again")


class NetworkModuleLora:
    """One layer of a loaded network, as the host keeps it. The class name is the host's."""

    dim, dora_scale = None, None

    def __init__(self, network: Any, up: Tensor, down: Tensor, layer: nn.Linear) -> None:
        self.network, self.up, self.down, self.sd_module = network, up, down, layer

    def calc_updown(self, weight: Tensor) -> tuple[Tensor, None]:
        """dW and no bias."""
        return (self.up @ self.down) * 0.5, None


def loaded(path: Path) -> Any:
    """A network as the host has it in memory after a start."""
    entry = SimpleNamespace(name=path.stem, alias=path.stem, filename=str(path))
    network = SimpleNamespace(
        name=path.stem,
        mentioned_name=path.stem,
        network_on_disk=entry,
        mtime=1.0,
        unet_multiplier=1.0,
        dyn_dim=None,
    )
    tensors = load_file(path)
    network.modules = {}
    for stem in (name.removesuffix(".alpha") for name in tensors if name.endswith(".alpha")):
        up, down = (tensors[f"{stem}.lora_{side}.weight"].float() for side in ("up", "down"))
        layer = nn.Linear(1, 1, bias=False)
        # A weight of the right shape that takes up no memory: nobody reads its numbers.
        layer.weight = nn.Parameter(torch.zeros(1, 1).expand(up.shape[0], down.shape[1]), requires_grad=False)
        network.modules[stem.replace("lora_unet_", "diffusion_model_")] = NetworkModuleLora(
            network, up, down, layer
        )
    return network


def child(folder: str) -> None:
    """Take the scores in this process, as after a start, and print seconds and the number of layers."""
    pair = [loaded(Path(folder) / f"{name}.safetensors") for name in ("content", "style")]
    keep_scores_in(Path(folder) / "scores")
    model = SimpleNamespace(is_sdxl=True)
    start, cpu = time.perf_counter(), time.process_time()
    seam = A1111Seam(SimpleNamespace(), model, pair, torch.device("cpu"))
    layers = [view for view in seam.layers() if view.is_shared]
    made = time.perf_counter()
    scores_of(seam, layers, (TOP_K_SUM, TOTAL), TopK.parse("64"))
    now = time.perf_counter()
    told = {"scores": now - made, "seam": made - start, "cpu": time.process_time() - cpu}
    print(json.dumps({**told, "layers": len(layers)}))


def forget(folder: Path) -> None:
    """As if no WebUI had ever run."""
    for kept in (folder / "scores").glob("*"):
        kept.unlink()


def main() -> None:
    """Both sides in turns."""
    parser = argparse.ArgumentParser(description="scores of a pair in a WebUI: first, and after a restart")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank", type=int, default=32)
    asked = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for seed, name in enumerate(("content", "style")):
            write_lora(folder / f"{name}.safetensors", sdxl_attention(), asked.rank, seed)
        for _ in range(asked.rounds):
            forget(folder)
            for side in SIDES:
                found[side].append(measured_apart("bench_kept", str(folder)))
    least = {side: {name: min(run[name] for run in runs) for name in runs[0]} for side, runs in found.items()}
    for side, one in least.items():
        print(
            f"{side:6} {one['layers']:.0f} layers: scores {one['scores']:.3f} s, seam {one['seam']:.3f} s, "
            f"both {one['cpu']:.3f} s of CPU"
        )
    print(f"again / first: {least['again']['scores'] / least['first']['scores']:.4f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2])
    else:
        main()
