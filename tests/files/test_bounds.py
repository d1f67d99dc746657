"""Files that are small or sound but ask for much: the work is counted, the memory measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from klora.errors import LoraFileError
from klora.files import patterns, read_lora

ROOT = Path(__file__).parents[2]
SIZES = {"F16": 2, "F32": 4}
LEAVES = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
UNET = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"

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


#: The inputs of the report, and their kin: name -> the file.
HEAVY: dict[str, Callable[[Path], Path]] = {
    "4,000 layers x 3,000 patterns": lambda path: with_patterns(
        path, 4000, 3000, lambda number: f"transformer_blocks.{number // 8}.attn.{LEAVES[number % 8]}"
    ),
    "16384 x 16384": lambda path: sparse(
        path,
        {f"{UNET}.lora_down.weight": ("F16", (1, 16384)), f"{UNET}.lora_up.weight": ("F16", (16384, 1))},
    ),
    "a LoKr of 8192": lambda path: sparse(
        path, {f"{UNET}.lokr_w1": ("F32", (2, 2)), f"{UNET}.lokr_w2": ("F16", (4096, 4096))}
    ),
    "3,000 fused layers": lambda path: fused(path, 1000),
    "14,000 experts": lambda path: experts(path, 999),
    "30 MB of tags": lambda path: sparse(
        path,
        lora("transformer.transformer_blocks.0.attn.to_q", 64, 64),
        {"ss_tag_frequency": json.dumps({"a": {f"tag {number}": number for number in range(600_000)}})},
    ),
    "100 MB": lambda path: sparse(
        path,
        {
            key: one
            for name in layers(200)
            for key, one in lora(f"transformer.{name}", 3072, 3072, 40).items()
        },
    ),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the most memory so")
@pytest.mark.parametrize("name", HEAVY)
def test_inspect_is_quick_and_small(name: str, tmp_path: Path) -> None:
    """Measured in a process of its own: seconds of the processor, and the most memory."""
    path = HEAVY[name](tmp_path / "x.safetensors")
    script = (
        "import resource, sys\n"
        "from klora.__main__ import main\n"
        "status = main(['inspect', sys.argv[1]])\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        # Not ru_maxrss, which begins with the memory of the process that started this one.
        "told = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "kilobytes = int(told['VmHWM'].split()[0])\n"
        "print(status, used.ru_utime + used.ru_stime, kilobytes // 1024, file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    status, seconds, megabytes = map(float, ran.stderr.splitlines()[-1].split())
    assert status == 0
    assert seconds < 10  # 2.5 at most where it was measured
    assert megabytes < 400  # of which the tags take most
