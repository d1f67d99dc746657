"""The scores of pictures on disk: a file for each pair and method, named by what determines the pictures."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from klora.lab import checkpoint, judges
from klora.lab.fronts.methods import Method
from klora.lab.pairs import Pair
from klora.lab.samples import STEPS

Cell = tuple[float, int]
"""A balance and a seed."""
Scores = dict[str, float]
"""Measures by name."""


@dataclass(frozen=True)
class Sampling:
    """How every picture is sampled, and with the weights of which folder."""

    weights: Path
    guidance: float = 4.0
    steps: int = STEPS

    @property
    def loras(self) -> Path:
        """The folder of the LoRAs."""
        return self.weights / "loras"


@lru_cache(maxsize=512)
def fingerprint(path: Path) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Store:
    """Scores in a folder; those of other weights are not found."""

    def __init__(self, folder: Path, sampling: Sampling) -> None:
        self.folder = folder
        self.sampling = sampling

    def path(self, pair: Pair, method: Method) -> Path:
        """The file of these scores."""
        weights = self.sampling.weights
        files = (weights / f"{checkpoint.NAME}.safetensors", weights / judges.NAME, *pair.files)
        told = [
            pair.prompt,
            {name: str(value) for name, value in method.settings.values.items() if name != "balance"},
            self.sampling.steps,
            self.sampling.guidance,
            method.contest,
            method.content_e,
            *map(fingerprint, files),
        ]
        name = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]
        return self.folder / pair.name.replace(" ", "") / f"{name}.json"

    def read(self, pair: Pair, method: Method) -> dict[Cell, Scores]:
        """The scores by balance and seed; empty where there are none or an interruption broke the file."""
        try:
            kept = json.loads(self.path(pair, method).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return {(cell["balance"], cell["seed"]): cell["scores"] for cell in kept["cells"]}

    def add(self, pair: Pair, method: Method, new: Mapping[Cell, Scores]) -> None:
        """Keep scores beside those that are kept already; the file is replaced at once."""
        cells = {**self.read(pair, method), **new}
        told = [
            {"balance": balance, "seed": seed, "scores": scores}
            for (balance, seed), scores in sorted(cells.items())
        ]
        path = self.path(pair, method)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps({"method": method.name, "cells": told}), encoding="utf-8")
        os.replace(partial, path)
