"""CLIP's own byte-pair tokenizer, offline: the merges are shipped, the vocabulary follows from them."""

from __future__ import annotations

import gzip
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

MERGES = Path(__file__).parent / "data" / "clip_merges.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"


def merges() -> list[str]:
    """CLIP's 48,894 merges, each "left right", most frequent first."""
    return gzip.decompress(MERGES.read_bytes()).decode().splitlines()


def byte_symbols() -> list[str]:
    """The 256 printable stand-ins of bytes, in the order of CLIP's vocabulary.

    Printable bytes stand for themselves; the others, in ascending order, for the characters from 256 on (the
    scheme of GPT-2's byte-level encoding).
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    return [chr(code) for code in printable] + [chr(256 + n) for n in range(256 - len(printable))]


@lru_cache(maxsize=1)
def vocabulary() -> dict[str, int]:
    """Word piece to number: symbols, symbols at a word's end, merges, start and end."""
    symbols = byte_symbols()
    pieces = symbols + [symbol + "</w>" for symbol in symbols]
    pieces += ["".join(merge.split()) for merge in merges()] + [START, END]
    return {piece: number for number, piece in enumerate(pieces)}


def write_tokenizer(folder: Path) -> None:
    """Write the files from which ``CLIPTokenizer.from_pretrained`` of any version reads CLIP's tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary(), ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges()]) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
        "model_max_length": 77,
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    special = {key: settings[key] for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1), encoding="utf-8")


@lru_cache(maxsize=1)
def tokenizer() -> Any:
    """CLIP's tokenizer as transformers knows it."""
    import tempfile

    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return CLIPTokenizer.from_pretrained(folder)


def encode(prompts: list[str]) -> Tensor:
    """Token numbers [n, 77], padded with the end token as Stable Diffusion 1 does."""
    numbers: Tensor = tokenizer()(
        prompts, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids
    return numbers
