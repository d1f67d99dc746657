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
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO, TypeGuard

from klora.errors import LoraFileError
from klora.files.defects import ReplacedFileError, defect_error, shown
from klora.files.late_torch import Tensor, torch

#: Header size above which a file is not a LoRA. The largest in the field, with tag lists, have a few MiB.
HEADER_LIMIT = 32 * 2**20

#: Bytes that are read at a time; a multiple of every format's size.
_PIECE = 2**23

#: Tensors above which a file is not a LoRA. The largest in the field, of mixtures of experts, have some
#: 5,000.
MOST_TENSORS = 30_000

#: Floating-point formats that a weight may have, and their names in torch; all are cast up before they are
#: used.
FLOATS: Mapping[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}

#: Integer formats: only an alpha or a flag may have one.
INTEGERS: Mapping[str, str] = {
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}

_NAMES = {**FLOATS, **INTEGERS}

#: Bytes of an element.
_SIZES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1},
}

#: How `struct` calls a format that it knows.
_WRITTEN = {
    **{"F64": "d", "F32": "f", "F16": "e"},
    **{"I64": "q", "I32": "i", "I16": "h", "I8": "b", "U8": "B", "BOOL": "?"},
}

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
    """What tells one version of a file on disk from the next: a replaced file has another identity.

    A copy may carry size and time of the file that it replaces; ``changed_ns``, the time of the last change
    of the file's entry on disk, is the system's own and cannot be carried along.
    ``rewritten`` tells what a transform has made of it in memory, ``beside`` what a configuration beside it
    says of its tensors.
    """

    size: int
    modified_ns: int
    changed_ns: int
    inode: int
    device: int
    rewritten: str = ""
    beside: str = ""

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """The identity from ``os.stat`` or ``os.fstat``."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> Identity:
        """The identity of the file at ``path``; raises ``OSError``."""
        return cls.of(os.stat(path))


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
        return self.read_all((key,))[0]

    def read_all(self, keys: Sequence[str]) -> list[Tensor]:
        """The tensors ``keys``, as `read` gives them, while the file is open once."""
        raws = self._bytes_of(keys)
        return [_tensor(raw, self.entries[key]) for raw, key in zip(raws, keys, strict=True)]

    def read_number(self, key: str) -> float:
        """The only element of the tensor ``key``, such as an alpha. Raises as `read` does."""
        written = _WRITTEN.get(self.entries[key].dtype)
        if written is None:  # bf16 and fp8
            return float(self.read(key).float())
        return float(struct.unpack("<" + written, self._bytes_of((key,))[0])[0])

    def pieces(self, key: str) -> Iterator[Tensor]:
        """The numbers of the tensor ``key`` in order, a few MiB at a time, for what need not have them all at
        once. Raises as `read` does."""
        entry = self.entries[key]
        for start in range(entry.start, entry.stop, _PIECE):
            stop = min(start + _PIECE, entry.stop)
            count = (stop - start) // _SIZES[entry.dtype]
            (raw,) = self._bytes_between([(start, stop)])
            yield _tensor(raw, Entry(entry.dtype, (count,), start, stop))

    def _bytes_of(self, keys: Sequence[str]) -> list[bytearray]:
        return self._bytes_between([(self.entries[key].start, self.entries[key].stop) for key in keys])

    def _bytes_between(self, spans: Sequence[tuple[int, int]]) -> list[bytearray]:
        raws = [bytearray(stop - start) for start, stop in spans]
        try:
            with self.path.open("rb", buffering=0) as stream:
                counts = [_read_at(stream, start, raw) for (start, _), raw in zip(spans, raws, strict=True)]
                # Asked after the reading, so that a change before it and one during it are both seen.
                identity = Identity.of(os.fstat(stream.fileno()))
        except OSError as error:
            raise self._changed(f"it can no longer be read ({_reason(error)})") from error
        if identity != self.identity or counts != [len(raw) for raw in raws]:
            raise self._changed("it was replaced on disk after it had been read")
        return raws

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
        return defect_error(self.path.name, defect, remedy, error=ReplacedFileError)


def _read_at(stream: RawIOBase, start: int, raw: bytearray) -> int:
    """Fill ``raw`` from ``start`` on, and say how far that went: one call may read less than is asked for."""
    stream.seek(start)
    done = 0
    with memoryview(raw) as view:
        while done < len(raw) and (count := stream.readinto(view[done:])):
            done += count
    return done


def _tensor(raw: bytearray, entry: Entry) -> Tensor:
    dtype: torch.dtype = getattr(torch, _NAMES[entry.dtype])
    if not raw:
        return torch.empty(entry.shape, dtype=dtype)
    return torch.frombuffer(raw, dtype=dtype).reshape(entry.shape)


def open_container(path: str | Path) -> Container:
    """Read and check the header of a safetensors file.

    Raises `LoraFileError` for anything that is not a sound safetensors file, before a single tensor is read.
    """
    path = Path(path)
    try:
        _refuse_what_is_no_file(path)
        with path.open("rb") as stream:
            identity = Identity.of(os.fstat(stream.fileno()))
            header, data_start = _read_header(stream, identity.size, path.name)
    except FileNotFoundError as error:
        raise missing_file(path) from error
    except (OSError, RuntimeError, ValueError) as error:
        # RuntimeError: pathlib's word for a loop of symbolic links; ValueError: a zero byte in the name.
        raise defect_error(path.name, f"it cannot be opened ({_reason(error)})", "check the file") from error
    metadata = _metadata(header.pop("__metadata__", None), path.name)
    entries = _entries(header, data_start, identity.size, path.name)
    return Container(path, identity, entries, metadata, data_start)


def missing_file(path: Path) -> LoraFileError:
    """The error for a LoRA file that is not there."""
    return defect_error(_called(path), "there is no such file", "check the name and the folder")


def _refuse_what_is_no_file(path: Path) -> None:
    """Raise `LoraFileError` for a folder, another ending, and a pipe, which to open would block for ever;
    ``OSError`` if there is nothing.

    The ending is asked last: who names a folder, or forgets the ending, has nothing to convert.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise defect_error(_called(path), "it is a folder", "name the LoRA file itself")
    if path.suffix.lower() != ".safetensors":
        raise defect_error(path.name, "only .safetensors files are read", "convert it to safetensors")
    if not stat.S_ISREG(mode):
        raise defect_error(path.name, "it is not a regular file", "name the LoRA file itself")


def _called(path: Path) -> str:
    """The last part of the path; all of it where that is nothing, as in ``.`` and ``/``."""
    return path.name or str(path)


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
    if dtype not in _NAMES:
        raise defect_error(
            file, f"{shown(key)} has the number format {shown(dtype, 20)}", "save it as fp16 or fp32"
        )
    first, last = offsets
    if len(shape) > 8 or last - first != math.prod(shape) * _SIZES[dtype]:
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
