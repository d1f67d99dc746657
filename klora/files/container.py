"""The safetensors container: a checked header, and tensors that are read when they are asked for.

The format is eight bytes with the length of a JSON header, the header, and the tensors' bytes
(https://github.com/huggingface/safetensors). It is parsed here, not by the library, for three reasons: every
defect gets a sentence of its own, tensors are read and not mapped (a mapped file that is truncated while a
picture is made kills the process), and no open handle keeps a user from deleting or replacing the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeGuard

import torch
from torch import Tensor

from klora.files.defects import ReplacedFileError, defect_error, shown

#: Header size above which a file is not a LoRA. The largest in the field, with tag lists, have a few MiB.
HEADER_LIMIT = 32 * 2**20

#: Tensors above which a file is not a LoRA. The largest in the field, for mixtures of experts, have 5,000.
MOST_TENSORS = 30_000

#: Floating-point formats that a weight may have; all are cast up before they are used.
FLOATS: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

#: Integer formats: only an alpha or a flag may have one.
INTEGERS: Mapping[str, torch.dtype] = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

_DTYPES = {**FLOATS, **INTEGERS}

_NEW_COPY = "download or save the file again"

#: First bytes of what people save under the name of a LoRA by mistake, and what it is.
_MISTAKEN = (
    (b"PK\x03\x04", "it is a zip or PyTorch file (.pt, .ckpt), not safetensors", "convert it to safetensors"),
    (b"\x80", "it is a Python pickle, not safetensors", "convert it to safetensors"),
    (
        b"version https://git-lfs",
        "it is a Git LFS pointer, not the file itself",
        "fetch the file with git lfs",
    ),
    (b"GGUF", "it is a GGUF file, not safetensors", "use the safetensors version of this LoRA"),
    (b"{", "it is a JSON text, probably an error message of the download", _NEW_COPY),
    (
        b"<",
        "it is a web page, not safetensors",
        "download the file itself, signed in if the site asks for it",
    ),
)


@dataclass(frozen=True)
class Identity:
    """What tells one version of a file on disk from the next: a replaced file has another identity."""

    size: int
    modified_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """The identity from ``os.stat`` or ``os.fstat``."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)


@dataclass(frozen=True)
class Entry:
    """One tensor in the file: ``start`` and ``stop`` are byte offsets from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Container:
    """A safetensors file whose header has been read and found sound."""

    path: Path
    identity: Identity
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    data_start: int

    def read(self, key: str) -> Tensor:
        """The tensor ``key`` as it is in the file, on the CPU.

        Raises `ReplacedFileError` if the file is gone or no longer the one whose header was read.
        """
        entry = self.entries[key]
        raw = bytearray(entry.stop - entry.start)
        try:
            with self.path.open("rb") as stream:
                stream.seek(entry.start)
                count = stream.readinto(raw)
                # Asked after the reading, so that a change before it and one during it are both seen.
                identity = Identity.of(os.fstat(stream.fileno()))
        except OSError as error:
            raise self._changed(f"it can no longer be read ({_reason(error)})") from error
        if identity != self.identity or count != len(raw):
            raise self._changed("it was replaced on disk after it had been read")
        if not raw:
            return torch.empty(entry.shape, dtype=_DTYPES[entry.dtype])
        return torch.frombuffer(raw, dtype=_DTYPES[entry.dtype]).reshape(entry.shape)

    def hashes(self) -> tuple[str, str]:
        """sha256 of the whole file, and of the tensors' bytes alone, as hexadecimal digits.

        The second is what the WebUI writes as a LoRA's hash and what Civitai calls AutoV3 (12 digits).
        """
        whole, tensors = hashlib.sha256(), hashlib.sha256()
        try:
            with self.path.open("rb") as stream:
                whole.update(stream.read(self.data_start))
                while block := stream.read(2**20):
                    whole.update(block)
                    tensors.update(block)
                identity = Identity.of(os.fstat(stream.fileno()))
        except OSError as error:
            raise self._changed(f"it can no longer be read ({_reason(error)})") from error
        if identity != self.identity:
            raise self._changed("it was replaced on disk after it had been read")
        return whole.hexdigest(), tensors.hexdigest()

    def _changed(self, defect: str) -> Exception:
        remedy = "put it back or generate again with the new one"
        return defect_error(self.path.name, defect, remedy, kind=ReplacedFileError)


def open_container(path: str | Path) -> Container:
    """Read and check the header of a safetensors file.

    Raises `LoraFileError` for anything that is not a sound safetensors file, before a single tensor is read.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise defect_error(path.name, "only .safetensors files are read", "convert it to safetensors")
    try:
        # Asked before opening: to open a pipe would block for ever.
        regular = stat.S_ISREG(path.stat().st_mode)
        if not regular:
            raise defect_error(path.name, "it is not a regular file", "name the LoRA file itself")
        with path.open("rb") as stream:
            identity = Identity.of(os.fstat(stream.fileno()))
            header, data_start = _read_header(stream, identity.size, path.name)
    except FileNotFoundError as error:
        raise defect_error(path.name, "there is no such file", "check the name and the folder") from error
    except (OSError, RuntimeError, ValueError) as error:
        # RuntimeError: pathlib's word for a loop of symbolic links; ValueError: a zero byte in the name.
        raise defect_error(path.name, f"it cannot be opened ({_reason(error)})", "check the file") from error
    metadata = _metadata(header.pop("__metadata__", None), path.name)
    entries = _entries(header, data_start, identity.size, path.name)
    return Container(path, identity, entries, metadata, data_start)


def _reason(error: Exception) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)


def _read_header(stream: BinaryIO, size: int, file: str) -> tuple[dict[str, object], int]:
    """The header as it stands, and the offset of the first tensor byte."""
    start = stream.read(512)
    if not start:
        raise defect_error(file, "the file is empty", _NEW_COPY)
    for beginning, defect, remedy in _MISTAKEN:
        # The eight bytes of a sound file's length can look like one of these only above the limit.
        if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(beginning) and _length(start) > HEADER_LIMIT:
            raise defect_error(file, defect, remedy)
    length = _length(start)
    if len(start) < 8 or 8 + length > size:
        begun = length <= HEADER_LIMIT and start[8:9] == b"{"
        known = _ends_early(size, 8 + length) if begun else "the file is truncated or is not safetensors"
        raise defect_error(file, known, _NEW_COPY)
    if length > HEADER_LIMIT:
        raise defect_error(
            file, f"its header has {length} bytes, more than any LoRA's ({HEADER_LIMIT})", _NEW_COPY
        )
    stream.seek(8)
    return _parsed(stream.read(length), file), 8 + length


def _length(start: bytes) -> int:
    return int.from_bytes(start[:8], "little")


def _parsed(raw: bytes, file: str) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        names: dict[str, object] = {}
        for name, value in pairs:
            if name in names:
                raise defect_error(file, f"its header names {shown(name)} twice", _NEW_COPY)
            names[name] = value
        return names

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise defect_error(file, "its header is not sound JSON", _NEW_COPY) from error
    if not isinstance(header, dict):
        raise defect_error(file, "its header is not a JSON object", _NEW_COPY)
    return header


def _metadata(found: object, file: str) -> Mapping[str, str]:
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise defect_error(file, "its metadata is not a table of texts", _NEW_COPY)
    return found


def _entries(header: Mapping[str, object], start: int, size: int, file: str) -> Mapping[str, Entry]:
    if len(header) > MOST_TENSORS:
        raise defect_error(file, f"it has {len(header)} tensors, more than any LoRA's", "name a LoRA file")
    entries = {key: _entry(key, value, start, file) for key, value in header.items()}
    if not entries:
        raise defect_error(file, "it holds no tensor", _NEW_COPY)
    end = max(entry.stop for entry in entries.values())
    if end > size:
        raise defect_error(file, _ends_early(size, end), _NEW_COPY)
    _refuse_overlap(entries, file)
    return entries


def _ends_early(size: int, whole: int) -> str:
    return f"it is damaged: it ends after {size} of {whole} bytes"


def _entry(key: str, found: object, start: int, file: str) -> Entry:
    """One line of the header, checked: dtype known, shape sane, size right."""
    fields = found if isinstance(found, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise defect_error(file, f"its header describes {shown(key)} wrongly", _NEW_COPY)
    if dtype not in _DTYPES:
        raise defect_error(
            file, f"{shown(key)} has the number format {shown(dtype, 20)}", "save it as fp16 or fp32"
        )
    first, last = offsets
    if len(shape) > 8 or last - first != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise defect_error(file, f"{shown(key)} has a size that does not fit its shape", _NEW_COPY)
    return Entry(dtype, tuple(shape), start + first, start + last)


def _naturals(found: object) -> TypeGuard[list[int]]:
    return isinstance(found, list) and all(type(one) is int and 0 <= one < 2**62 for one in found)


def _refuse_overlap(entries: Mapping[str, Entry], file: str) -> None:
    end = 0
    for key, entry in sorted(_filled(entries), key=lambda item: item[1].start):
        if entry.start < end:
            raise defect_error(file, f"{shown(key)} overlaps another tensor", _NEW_COPY)
        end = entry.stop


def _filled(entries: Mapping[str, Entry]) -> Iterable[tuple[str, Entry]]:
    return ((key, entry) for key, entry in entries.items() if entry.stop > entry.start)
