"""Files that are small or sound but ask for much: the work and the memory are counted."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from klora.__main__ import main
from klora.errors import LoraFileError
from klora.files import patterns, read_lora

SIZES = {"F16": 2, "F32": 4}
LEAVES = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
UNET = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"

UNET_IN_PEFT = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]


def sparse(path: Path, shapes: Shapes, metadata: Mapping[str, str] | None = None) -> Path:
    """A sound file of zeros with this header, which takes no room on the disk."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    size = 0
    for key, (dtype, shape) in shapes.items():
        length = SIZES[dtype]
        for side in shape:
            length *= side
        table[key] = {"dtype": dtype, "shape": shape, "data_offsets": [size, size + length]}
        size += length
    header = json.dumps(table).encode()
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + size)
    return path


def lora(name: str, out: int, inside: int, rank: int = 2) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {f"{name}.lora_A.weight": ("F16", (rank, inside)), f"{name}.lora_B.weight": ("F16", (out, rank))}


def layers(count: int) -> list[str]:
    return [f"transformer_blocks.{place // 8}.attn.{LEAVES[place % 8]}" for place in range(count)]


def with_patterns(path: Path, count: int, entries: int, pattern: Callable[[int], str]) -> Path:
    """``count`` layers, and so many patterns for their alphas and ranks."""
    table = {pattern(number): 8 for number in range(entries)}
    config = {"r": 2, "lora_alpha": 4, "alpha_pattern": table, "rank_pattern": table}
    packed = json.dumps({f"transformer.{key}": value for key, value in config.items()})
    shapes = {key: one for name in layers(count) for key, one in lora(f"transformer.{name}", 64, 64).items()}
    return sparse(path, shapes, {"lora_adapter_metadata": packed})


def experts(path: Path, count: int) -> Path:
    stem = "transformer.double_stream_blocks.0.block.ff_i.experts"
    names = [f"{stem}.{number}.w1" for number in range(count)]
    return sparse(path, {key: one for name in names for key, one in lora(name, 8, 8).items()})


def fused(path: Path, count: int) -> Path:
    names = [f"transformer.transformer_blocks.{number}.attn.to_qkv" for number in range(count)]
    return sparse(path, {key: one for name in names for key, one in lora(name, 24, 8).items()})


MANY: dict[str, Callable[[Path, int], Path]] = {
    "patterns without wildcards": lambda path, count: with_patterns(
        path, count, count * 3 // 4, lambda number: layers(number + 1)[-1]
    ),
    "experts": experts,
    "fused": fused,
}


def calls_of(action: Callable[[], object]) -> int:
    """How many functions are called, of Python and of C."""
    count = 0

    def watch(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(watch)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("kind", MANY)
def test_the_work_grows_as_the_file_does(kind: str, tmp_path: Path) -> None:
    paths = [MANY[kind](tmp_path / f"{count}.safetensors", count) for count in (200, 400)]
    for path in paths:
        read_lora(path)  # so that what is kept of names is kept for both
    small, large = (calls_of(lambda path=path: read_lora(path)) for path in paths)
    assert large < 2.3 * small


def test_patterns_that_take_long_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Followed, 140 of these would take minutes for 4,000 layers."""
    monkeypatch.setattr(patterns, "_MOST_SECONDS", 0.1)
    path = with_patterns(tmp_path / "x.safetensors", 4000, 140, ".*[a-z].*[a-z].*zz{}".format)
    with pytest.raises(LoraFileError, match=r"its (alpha|rank)_pattern takes too long to follow"):
        read_lora(path)


def test_a_long_name_is_not_matched(tmp_path: Path) -> None:
    config = json.dumps({"transformer.lora_alpha": 4, "transformer.alpha_pattern": {".*a.*b": 8}})
    name = "transformer." + "transformer_blocks.0.attn.to_q" + ".a" * 80
    path = sparse(tmp_path / "x.safetensors", lora(name, 8, 8), {"lora_adapter_metadata": config})
    with pytest.raises(LoraFileError):
        read_lora(path)


def wide(path: Path, side: int) -> Path:
    shapes: Shapes = {
        f"{UNET}.lora_down.weight": ("F16", (1, side)),
        f"{UNET}.lora_up.weight": ("F16", (side, 1)),
    }
    return sparse(path, shapes)


def lokr(path: Path, rows: int) -> Path:
    return sparse(path, {f"{UNET}.lokr_w1": ("F32", (2, 2)), f"{UNET}.lokr_w2": ("F16", (rows, 4096))})


def tags(path: Path, count: int) -> Path:
    table = {"a": {f"tag {number}": number for number in range(count)}}
    one = lora("transformer.transformer_blocks.0.attn.to_q", 64, 64)
    return sparse(path, one, {"ss_tag_frequency": json.dumps(table)})


def large(path: Path, count: int) -> Path:
    shapes = {key: one for name in layers(count) for key, one in lora(name, 3072, 3072, 40).items()}
    return sparse(path, {f"transformer.{key}": one for key, one in shapes.items()})


#: What asks for much: a file of a size, and the smaller of two sizes to compare.
HEAVY: dict[str, tuple[Callable[[Path, int], Path], int]] = {
    "patterns": (MANY["patterns without wildcards"], 200),
    "a wide layer": (wide, 8192),
    "a LoKr": (lokr, 2048),
    "fused": (fused, 100),
    "experts": (experts, 200),
    "tags": (tags, 20_000),
    "a large file": (large, 50),
}


class Formed(TorchDispatchMode):
    """Counts the elements of all tensors that torch makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        parts = made if isinstance(made, (tuple, list)) else (made,)
        self.elements += sum(one.numel() for one in parts if isinstance(one, Tensor))
        return made


def memory_of(action: Callable[[], object]) -> int:
    """The most bytes that Python and numpy hold at a time."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def inspect(path: Path) -> None:
    assert main(["inspect", str(path)]) == 0


@pytest.mark.parametrize("kind", HEAVY)
def test_inspect_is_quick_and_small(kind: str, tmp_path: Path) -> None:
    """By counts, not by a clock: no more work than twice for a file twice as large, and of its tensors
    neither a whole one nor dW in memory, which only has to hold what the header says.
    """
    make, size = HEAVY[kind]
    tiny = sparse(tmp_path / "tiny.safetensors", lora(UNET_IN_PEFT, 8, 8))
    paths = [tiny, *(make(tmp_path / f"{times}.safetensors", times * size) for times in (1, 2))]
    for path in paths:
        inspect(path)  # so that what is kept of names is kept for all
    calls = [calls_of(lambda path=path: inspect(path)) for path in paths]
    assert calls[2] < 2.3 * calls[1]
    memory = [memory_of(lambda path=path: inspect(path)) for path in paths]
    with paths[2].open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
    body = paths[2].stat().st_size - header
    assert memory[2] < 2.3 * memory[1]
    assert memory[2] - memory[0] < 2**21 + 16 * header + body // 2
    with Formed() as formed:
        inspect(paths[2])
    assert formed.elements <= body
