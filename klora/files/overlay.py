"""A LoRA file some of whose tensors are others than on disk: what a transform makes of it, in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from klora.files.container import Container, Entry
from klora.files.layer import LoraLayer
from klora.files.lora_file import LoraFile


@dataclass(frozen=True, eq=False)
class Overlay(Container):
    """A container that answers some keys from memory, ``tensors`` in fp32, and the others from its file."""

    below: Container
    tensors: Mapping[str, Tensor]

    def read_all(self, keys: Sequence[str]) -> list[Tensor]:
        """As the file's; copies of what is in memory, which the reader may change."""
        below = [key for key in keys if key not in self.tensors]
        found = dict(zip(below, self.below.read_all(below), strict=True)) if below else {}
        return [self.tensors[key].clone() if key in self.tensors else found[key] for key in keys]

    def read_number(self, key: str) -> float:
        """As the file's."""
        return float(self.tensors[key]) if key in self.tensors else self.below.read_number(key)

    def pieces(self, key: str) -> Iterator[Tensor]:
        """As the file's; of what is in memory all at once."""
        yield from (self.tensors[key].flatten(),) if key in self.tensors else self.below.pieces(key)

    def hashes(self) -> tuple[str, str]:
        """Those of the file itself."""
        return self.below.hashes()


def with_tensors(file: LoraFile, tensors: Mapping[str, Tensor]) -> LoraFile:
    """The file with other tensors under some of its keys; shapes stay as they are.

    Its identity is another one, and the same for the same numbers. ``file`` itself, if nothing is replaced.
    """
    if not tensors:
        return file
    wide = {key: one.detach().to("cpu", torch.float32).contiguous() for key, one in tensors.items()}
    for key, one in wide.items():
        assert one.shape == file.container.entries[key].shape, f"{key} would change its shape"
    overlay = Overlay(
        path=file.container.path,
        identity=replace(file.container.identity, rewritten=_digest(wide)),
        entries={**file.container.entries, **{key: _entry(one) for key, one in wide.items()}},
        metadata=file.container.metadata,
        data_start=file.container.data_start,
        below=file.container,
        tensors=wide,
    )

    def above(layers: Mapping[str, LoraLayer]) -> dict[str, LoraLayer]:
        return {name: replace(layer, container=overlay) for name, layer in layers.items()}

    return replace(file, container=overlay, layers=above(file.layers), text_encoder=above(file.text_encoder))


def _entry(tensor: Tensor) -> Entry:
    """A line of the header for what is in no file: without offsets."""
    return Entry("F32", tuple(tensor.shape), 0, 0)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].numpy().tobytes())
    return digest.hexdigest()
