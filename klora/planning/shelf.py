"""A folder that keeps small results from one start to the next, and may vanish or fail without harm.

Each result is a file of its own, named by what it depends on. Writers never meet in one file: a result is
written beside its place and moved there whole. A reader believes nothing that its checksum does not confirm.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

#: Above this, results that were not asked for the longest are thrown away.
MOST_BYTES = 32 * 2**20
MOST_FILES = 2000

_ENDING = ".json"
_UNFINISHED = ".part"

# After this many seconds the writer of an unfinished file is taken to be dead.
_ABANDONED = 3600


class Shelf:
    """The results in one folder, which is made when there is something to keep. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._has_complained = False

    def get(self, key: Sequence[object]) -> Any:
        """The result kept under ``key``, or ``None`` if there is none that is whole.

        ``key`` is plain data (texts, numbers, lists of them), and equal keys are the same result for ever.
        """
        name = _name(key)
        place = self.folder / (name + _ENDING)
        try:
            raw = place.read_bytes()
        except OSError:
            return None
        checksum, _, body = raw.partition(b"\n")
        if checksum != _checksum(name, body):
            return None
        self._note_use(place)
        return json.loads(body)

    def put(self, key: Sequence[object], result: object) -> None:
        """Keep a result, plain data. Where that fails it is not kept, and the console is told once."""
        name = _name(key)
        body = json.dumps(result, separators=(",", ":")).encode()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(self.folder / (name + _ENDING), _checksum(name, body) + b"\n" + body)
            self._throw_away()
        except OSError as error:
            self._complain(error)

    def _write(self, place: Path, raw: bytes) -> None:
        handle, unfinished = tempfile.mkstemp(suffix=_UNFINISHED, dir=self.folder)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(raw)
            os.replace(unfinished, place)
        finally:
            Path(unfinished).unlink(missing_ok=True)  # there is none once it has moved

    def _note_use(self, place: Path) -> None:
        with suppress(OSError):  # a folder that may only be read
            os.utime(place)

    def _throw_away(self) -> None:
        """Keep the folder within its bounds, and free of what writers left that were killed."""
        files = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                # Another process may throw it away at this moment.
                with suppress(FileNotFoundError):
                    if entry.name.endswith((_ENDING, _UNFINISHED)):
                        status = entry.stat()
                        files.append((status.st_mtime, status.st_size, entry.path))
        files.sort(reverse=True)
        size, oldest = 0, time.time() - _ABANDONED
        for count, (used, length, path) in enumerate(files, 1):
            size += length
            is_abandoned = path.endswith(_UNFINISHED) and used < oldest
            if is_abandoned or size > MOST_BYTES or count > MOST_FILES:
                Path(path).unlink(missing_ok=True)

    def _complain(self, error: OSError) -> None:
        if not self._has_complained:
            self._has_complained = True
            reason = error.strerror or type(error).__name__
            print(
                f"K-LoRA: scores cannot be kept for the next start ({reason}); they are taken anew then.",
                file=sys.stderr,
            )


def _name(key: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(key, separators=(",", ":")).encode()).hexdigest()


def _checksum(name: str, body: bytes) -> bytes:
    # The name is part of it: a file that was moved to another name is none of that name's.
    return hashlib.sha256(name.encode() + body).hexdigest().encode()


def folder_of_user() -> Path | None:
    """Where the command line keeps results: ``KLORA_CACHE``, or the user's cache folder as the platform has
    it. An empty ``KLORA_CACHE`` means that nothing is kept: ``None``."""
    chosen = os.environ.get("KLORA_CACHE")
    if chosen is not None:
        return Path(chosen) if chosen else None
    home = os.path.expanduser("~")
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or os.path.join(home, "AppData", "Local")) / "klora"
    if sys.platform == "darwin":
        return Path(home) / "Library" / "Caches" / "klora"
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")) / "klora"
