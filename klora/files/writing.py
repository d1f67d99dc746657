"""Writing a file so that it is there whole or not at all, with one sentence where that cannot be done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from klora.errors import KloraError


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, into a device or a pipe as it is; raises `KloraError`."""
    target = Path(path)
    if target.exists() and not target.is_file() and not target.is_dir():
        try:
            target.write_text(text, encoding="utf-8")
        except OSError as error:
            raise KloraError(_sentence(target, error)) from error
        return
    with written_whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_with(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a draft with the ending of ``path``, and put it there; raises `KloraError`."""
    with written_whole(path) as draft:
        write(draft)


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A draft beside ``path``, which takes its place if the block ends well, and is removed if it does not.

    Raises `KloraError` if the folder is missing or read-only, the disk is full, or writing fails otherwise,
    and for what is no ordinary file: a device would be replaced by one.
    An error that a library raises for a failed write without being an ``OSError``, as safetensors does, is
    the caller's to turn into one.
    """
    target = Path(path)
    if target.is_dir():
        raise KloraError(f"{target} is a folder; name a file in it to write to.")
    if target.exists() and not target.is_file():
        raise KloraError(f"{target} is no ordinary file; name another to write to.")
    draft = target.with_name(f"{target.stem}.{os.getpid()}.part{target.suffix}")
    try:
        yield draft
        draft.replace(target)
    except OSError as error:
        raise KloraError(_sentence(target, error)) from error
    finally:
        _remove(draft)


def _sentence(target: Path, error: OSError) -> str:
    folder = target.parent
    if not folder.is_dir():
        return f"{target} cannot be written: there is no folder {folder}; make it or name another."
    reason = error.strerror or str(error)
    return f"{target} cannot be written ({reason}); name another place or make room there."


def _remove(draft: Path) -> None:
    try:
        draft.unlink(missing_ok=True)
    except OSError:
        return  # the folder is gone or read-only: then the draft was never there
