"""Fuzz with files that are almost right: real names and shapes, and one to five things changed in each.

Whatever comes of a file, the command line has to answer in a sentence: no traceback, no hang, no gigabyte.
Run it for as many seconds as you like:

    python tests/fuzz/fuzz_structures.py --seconds 3600 --seed 1 FOLDER

It stops at the first failure, which stays in FOLDER, and prints the seed of the case.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from klora.errors import KloraError
from klora.files import pair_layers, read_lora
from klora.files.conversion import DIALECTS, convert
from klora.files.models import MODELS, BaseModel, Layer
from klora.files.summary import summarise

#: Of the processor, and of the clock, which a busy machine stretches and a pipe without a writer stops.
SECONDS_A_CASE, WALL_SECONDS_A_CASE = 20, 600
MEGABYTES = 1500
LARGEST_FILE = 2**27
RANK = 2
HIDDEN = (6, 24, 64)
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I64": 8, "BOOL": 1, "F4": 1}

Header = dict[str, Any]
Names = Callable[[str], str]

#: Spelling of a layer in a dialect: prefix, and whether its dots become underscores.
DIALECT_PREFIXES = (
    ("lora_unet_", True),
    ("lycoris_", True),
    ("lora_transformer_", True),
    ("transformer.", False),
    ("unet.", False),
    ("diffusion_model.", False),
    ("base_model.model.", False),
    ("module.", False),
    ("transformer_2.", False),
    ("transformer._orig_mod.", False),
    ("lora_unet__orig_mod_", True),
    ("lora_prior_unet_", True),
    ("", False),
)
#: Parameters of a type -> the letters of a sound shape: o(ut), i(n), r(ank), 1.
TYPES = (
    {"lora_A.weight": "ri", "lora_B.weight": "or"},
    {"lora_down.weight": "ri", "lora_up.weight": "or", "alpha": ""},
    {"lora_A.default.weight": "ri", "lora_B.default.weight": "or", "lora_magnitude_vector": "o"},
    {"lora_A.weight": "ri", "lora_B.weight": "or", "lora_B.bias": "o", "magnitude": "o"},
    {"lora_down.weight": "ri", "lora_up.weight": "or", "dora_scale": "o1", "diff_b": "o"},
    {"hada_w1_a": "or", "hada_w1_b": "ri", "hada_w2_a": "or", "hada_w2_b": "ri", "alpha": ""},
    {"lokr_w1": "11", "lokr_w2": "oi", "alpha": ""},
    {"diff": "oi", "diff_b": "o"},
    {"a1.weight": "ir", "a2.weight": "ri", "b1.weight": "or", "b2.weight": "ri"},
    {"w_norm": "o", "b_norm": "o"},
    {"scale": "o"},
    {"weight": "oi", "bias": "o"},
    {"lora_A.weight": "ri", "lora_B.weight": "or", "base_layer.bias": "o"},
    {"lora_A.weight": "ri111", "lora_B.weight": "or111", "reshape_weight": "1"},
    {"lora_E": "r1", "lora_A": "ri", "lora_B": "or"},
)
PATTERNS = (
    ".*attn1\\.to_q",
    "to_q",
    "(a+)+$",
    "(",
    ".*.*.*.*x",
    "attn\\.to_[qkv]",
    "x" * 500,
    "",
    "[",
    "(?P<a>b)",
    "^blocks\\.0\\..*",
)
BEGINNINGS = (True, False, "gaussian", "pissa", "pissa_niter_4", "olora", "eva", "loftq", 3, None, ["x"])


def sizes(layer: Layer, width: int) -> tuple[int, int]:
    """Outputs and inputs of a layer in a model of this width."""
    sides = (layer.leaf.out, layer.leaf.inside)
    out, inside = (round(one * width) if isinstance(one, int | float) else 2 * width for one in sides)
    return max(out, 1), max(inside, 1)


def spelled(layer: Layer, rng: random.Random) -> str:
    """One of the layer's paths, with numbers that its model has."""
    path = rng.choice(list(layer.spellings()))
    while "#" in path:
        path = path.replace("#", str(rng.randrange(layer.block.count or 3) if rng.random() < 0.9 else 999), 1)
    return path


def sound_header(model: BaseModel, rng: random.Random) -> Header:
    """Layers of one model in one dialect and one type, at one width."""
    prefix, is_flat = rng.choice(DIALECT_PREFIXES)
    kind, width = rng.choice(TYPES), rng.choice(HIDDEN)
    header: Header = {}
    layers = list(model.layers())
    for layer in rng.choices(layers, k=rng.randrange(1, 12)):
        path = spelled(layer, rng)
        stem = prefix + (path.replace(".", "_") if is_flat else path)
        out, inside = sizes(layer, width)
        letters = {"o": out, "i": inside, "r": RANK, "1": 1}
        for parameter, shape in kind.items():
            header[f"{stem}.{parameter}"] = {"dtype": "F32", "shape": [letters[one] for one in shape]}
    return header


def change(header: Header, metadata: dict[str, str], rng: random.Random) -> None:
    """One thing made otherwise: a shape, a format, a name, an entry of the metadata."""
    key = rng.choice(list(header)) if header else ""
    what = rng.randrange(8)
    if what == 0 and key and header[key]["shape"]:
        place = rng.randrange(len(header[key]["shape"]))
        header[key]["shape"][place] = rng.choice((0, 1, 3, 7, 4096, 100_000))
    elif what == 1 and key:
        header[key]["dtype"] = rng.choice(list(BYTES))
    elif what == 2 and len(header) > 1:
        del header[key]
    elif what == 3 and key:
        header[renamed(key, rng)] = header.pop(key)
    elif what == 4 and key:
        header[key]["shape"] = header[key]["shape"][::-1] + [1] * rng.randrange(4)
    elif what == 5:
        metadata["lora_adapter_metadata"] = json.dumps(configuration(rng))
    elif what == 6:
        name = rng.choice(("lora_alpha", "transformer.lora_alpha", "unet.alpha", "alpha", "network_alpha"))
        metadata[name] = rng.choice(("8", "nan", "-1", "1e400", "x", "0", "16.5"))
    else:
        name = rng.choice(("modelspec.trigger_phrase", "ss_tag_frequency", "modelspec.architecture"))
        metadata[name] = rng.choice(
            ("水墨", "{", "[" * 5000, '{"a": {"b": 1}}', "flux", "\x1b[31m", "qwen-image")
        )


def renamed(key: str, rng: random.Random) -> str:
    """The key with a letter, a word or a number changed."""
    place = rng.randrange(len(key))
    return rng.choice(
        (key[:place] + key[place + 1 :], key + ".x", "unet." + key, key.replace("0", "00"), key[:1])
    )


def configuration(rng: random.Random) -> dict[str, object]:
    """PEFT's configuration, some of it nonsense."""
    prefix = rng.choice(("unet.", "transformer.", ""))
    table = {rng.choice(PATTERNS): rng.choice((1, 32, "x", None, -4, 1e99)) for _ in range(rng.randrange(4))}
    return {
        f"{prefix}r": rng.choice((2, 2, 4, 0, "4")),
        f"{prefix}lora_alpha": rng.choice((4, 4, 8.5, None, "x", float("inf"))),
        f"{prefix}alpha_pattern": rng.choice((table, table, table, [], "x", None)),
        f"{prefix}rank_pattern": rng.choice((table, None)),
        f"{prefix}init_lora_weights": True if rng.random() < 0.8 else rng.choice(BEGINNINGS),
        f"{prefix}use_rslora": rng.choice((True, False, 1)),
    }


def write(path: Path, header: Header, metadata: dict[str, str], rng: random.Random) -> None:
    """The file, its numbers random, now and then cut short."""
    table: Header = {"__metadata__": metadata} if metadata else {}
    size = 0
    for key, entry in header.items():
        length = BYTES[entry["dtype"]]
        for side in entry["shape"]:
            length *= side
        table[key] = {**entry, "data_offsets": [size, size + length]}
        size += length
    text = json.dumps(table).encode()
    size = min(size, LARGEST_FILE)  # what is larger is cut short, which is a case of its own
    body = numbers(min(size, 2**22), rng)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text + body)
        stream.truncate(8 + len(text) + (size if rng.random() < 0.97 else size // 2))


def numbers(size: int, rng: random.Random) -> bytes:
    """``size`` bytes: sound fp32 numbers, now and then any bytes at all, NaN among them."""
    if rng.random() < 0.1:
        return rng.randbytes(size)
    one = b"".join(struct.pack("<f", rng.uniform(-1, 1) * (rng.random() < 0.9)) for _ in range(64))
    return (one * (size // len(one) + 1))[:size]


def put_sidecar(path: Path, rng: random.Random) -> None:
    """Beside the file: a note, a pipe, a folder, a large file, or nothing."""
    beside = path.with_suffix(".json")
    what = rng.randrange(12)
    if what == 0:
        os.mkfifo(beside)
    elif what == 1:
        beside.mkdir()
    elif what == 2:
        with beside.open("wb") as stream:
            stream.truncate(2**31)
    elif what == 3:
        beside.write_text(rng.choice(("{", "[]", '{"activation text": 3}', '{"preferred weight": 1e999}')))


def clear(folder: Path) -> None:
    """Take away what the case before has left."""
    for one in folder.iterdir():
        if one.is_dir():
            one.rmdir()
        else:
            one.unlink()


def use(path: Path, rng: random.Random) -> None:
    """Ask for all that can be asked of a file; sentences are fine, anything else is a failure."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(KloraError):
        summarise(path, verify=True)
        file = read_lora(path)
        for pair in pair_layers(file, file):
            layer = pair.content
            if layer is not None and not layer.needs_base and layer.shape[0] * layer.shape[1] < 2**24:
                assert sum(block.shape[0] for block in layer.delta_blocks()) == layer.shape[0]
        if sum(layer.shape[0] * layer.shape[1] for layer in file.all_layers) < 2**22:
            convert(path, path.with_name("out.safetensors"), rng.choice(DIALECTS), overwrite=True)


def one_case(folder: Path, seed: int) -> None:
    """The case with this seed; raises what it should not."""
    rng = random.Random(seed)
    clear(folder)
    header, metadata = sound_header(rng.choice(MODELS), rng), dict[str, str]()
    for _ in range(rng.randrange(6)):
        change(header, metadata, rng)
    path = folder / "case.safetensors"
    write(path, header, metadata, rng)
    put_sidecar(path, rng)
    signal.signal(signal.SIGALRM, _too_long)
    signal.signal(signal.SIGPROF, _too_long)
    signal.alarm(WALL_SECONDS_A_CASE)
    signal.setitimer(signal.ITIMER_PROF, SECONDS_A_CASE)
    try:
        use(path, rng)
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert megabytes < MEGABYTES, f"{megabytes:.0f} MB"


def _too_long(number: int, _frame: object) -> None:
    raise TimeoutError(f"a case took too long ({signal.Signals(number).name})")


def main() -> None:
    """Run cases until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    end, seed = time.monotonic() + arguments.seconds, arguments.seed
    while time.monotonic() < end:
        try:
            one_case(arguments.folder, seed)
        except BaseException:
            print(f"seed {seed}", flush=True)
            raise
        seed += 1
    print(f"{seed - arguments.seed} cases, none failed", flush=True)


if __name__ == "__main__":
    main()
