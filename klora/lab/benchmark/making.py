"""Making the pictures of one pair by one method, and keeping them, so that nothing is made twice."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from functools import lru_cache as remember
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

import klora
from klora.files import is_attention, read_lora
from klora.files.pairing import pair_layers
from klora.lab import checkpoint, loras, samples, truth
from klora.lab.benchmark.methods import Method
from klora.lab.judges import through
from klora.lab.model import Model
from klora.lab.pairs import Pair


@dataclass(frozen=True)
class Sampling:
    """How every picture is sampled, and with which checkpoint."""

    weights: Path
    """Folder of the checkpoint, of the judges and of the LoRAs."""
    steps: int = samples.STEPS
    guidance: float = samples.GUIDANCE

    @property
    def checkpoint(self) -> Path:
        """The checkpoint's file."""
        return self.weights / f"{checkpoint.NAME}.safetensors"


@dataclass(frozen=True)
class Made:
    """Pictures [seeds, 3, 64, 64] in bytes, and the processor's seconds that each took, in its batch."""

    pictures: Tensor
    seconds: Tensor


@remember(maxsize=256)
def fingerprint(path: Path) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@remember(maxsize=1024)
def attention_only(pair: Pair) -> bool:
    """Whether the two LoRAs share attention layers and no others."""
    layers = pair_layers(read_lora(pair.content_file), read_lora(pair.style_file))
    return all(is_attention(one.name) for one in layers if one.content is not None and one.style is not None)


@contextmanager
def applied(pipe: Any, pair: Pair, method: Method) -> Iterator[Any]:
    """The pipeline with the pair in it as the method says; yields the fusion where there is one."""
    with ExitStack() as stack:
        if method.settings is None:
            for file, weight in zip((pair.content_file, pair.style_file), method.weights or (), strict=True):
                if weight:
                    stack.enter_context(loras.merged(pipe.unet, file, weight))
            yield None
            return
        settings = dict(method.settings)
        if method.tosses:
            settings["coin_seed"] = int(hashlib.sha256(pair.name.encode()).hexdigest()[:7], 16)
        yield stack.enter_context(klora.fuse(pipe, pair.content_file, pair.style_file, settings))


class Maker:
    """Makes pictures with one loaded model."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling

    @cached_property
    def model(self) -> Model:
        """The model, loaded when first needed."""
        return checkpoint.load(self.sampling.checkpoint)

    @cached_property
    def pipe(self) -> Any:
        """The model as a pipeline."""
        return samples.pipeline(self.model)

    def make(self, pair: Pair, method: Method, seeds: Sequence[int]) -> Made:
        """One picture for each seed, in one batch; a busy machine does not lengthen the processor's time."""
        steps, guidance = self.sampling.steps, self.sampling.guidance
        pipe = self.pipe  # loading is no part of the time
        begun = time.process_time()
        with applied(pipe, pair, method):
            shifted = [seed + method.seed_offset for seed in seeds]
            pictures = samples.generate(pipe, [pair.prompt] * len(seeds), shifted, steps, guidance)
        each = (time.process_time() - begun) / len(seeds)
        return Made(pictures, torch.full((len(seeds),), each))

    def true(self, pair: Pair, seeds: Sequence[int]) -> Made:
        """The true drawing through the autoencoder, the same for every seed."""
        drawn = truth.drawing(pair.subject, pair.style.style)[None]
        picture = through(self.model.autoencoder, drawn)
        return Made(picture.expand(len(seeds), -1, -1, -1), torch.zeros(len(seeds)))


class Store:
    """Pictures on disk, a file for each pair and recipe; those of other weights are not found."""

    def __init__(self, folder: Path, sampling: Sampling) -> None:
        self.folder = folder / "pictures"
        self.sampling = sampling

    def path(self, pair: Pair, method: Method) -> Path:
        """The file of these pictures, named by all that determines them."""
        files = (self.sampling.checkpoint, pair.content_file, pair.style_file)
        told = [
            pair.prompt,
            method.recipe(attention_only(pair)),
            self.sampling.steps,
            self.sampling.guidance,
            *map(fingerprint, files),
        ]
        if method.tosses:
            told.append(pair.name)
        name = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]
        return self.folder / pair.name.replace(" ", "") / f"{name}.npz"

    def read(self, pair: Pair, method: Method) -> dict[int, tuple[Tensor, float]]:
        """Picture and seconds by seed; a file that an interruption or a full disk left broken reads empty."""
        try:
            with np.load(self.path(pair, method)) as kept:
                pictures, seconds, seeds = (kept[name] for name in ("pictures", "seconds", "seeds"))
        except (FileNotFoundError, BadZipFile, EOFError, KeyError):
            return {}
        return {
            int(seed): (torch.from_numpy(picture), float(taken))
            for seed, picture, taken in zip(seeds, pictures, seconds, strict=True)
        }

    def missing(self, pair: Pair, method: Method, seeds: Sequence[int]) -> list[int]:
        """The seeds whose pictures are yet to be made."""
        kept = self.read(pair, method)
        return [seed for seed in seeds if seed not in kept]

    def add(self, pair: Pair, method: Method, seeds: Sequence[int], made: Made) -> None:
        """Keep pictures beside those that are kept already; the file is replaced at once."""
        kept = self.read(pair, method)
        new = zip(made.pictures, made.seconds.tolist(), strict=True)
        kept.update(dict(zip(seeds, new, strict=True)))
        path = self.path(pair, method)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.savez_compressed(
                file,
                seeds=np.array(list(kept)),
                pictures=torch.stack([picture for picture, _ in kept.values()]).numpy(),
                seconds=np.array([taken for _, taken in kept.values()]),
                method=method.name,
            )
        os.replace(partial, path)

    def get(self, pair: Pair, method: Method, seeds: Sequence[int]) -> Made:
        """The kept pictures of these seeds, all of which must have been made."""
        kept = self.read(pair, method)
        return Made(
            torch.stack([kept[seed][0] for seed in seeds]), torch.tensor([kept[seed][1] for seed in seeds])
        )
