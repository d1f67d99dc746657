"""Writing a file so that it is there whole or not at all, with one sentence where that cannot be done."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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


def check_place(path: str | Path) -> None:
    """Raise `KloraError` if there can be no file at ``path``; asked before the work that is to fill it."""
    target = Path(path)
    if target.is_dir():
        raise KloraError(f"{target} is a folder; name a file in it to write to.")
    if not target.parent.is_dir():
        raise KloraError(_without_folder(target))


def made_folder(path: str | Path) -> Path:
    """The folder at ``path``, made where there is none; raises `KloraError` if files cannot be put in it."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise KloraError(f"{folder} cannot be used (it is a file); name a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KloraError(f"{folder} cannot be used ({_reason(error)}); name another folder.") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise KloraError(f"{folder} cannot be used (it is read-only); name another folder.")
    return folder


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A draft beside ``path``, which takes its place if the block ends well, and is removed if it does not.

    Raises `KloraError` if the folder is missing or read-only, the disk is full, or writing fails otherwise,
    and for what is no ordinary file: a device would be replaced by one. Who may read the file is as before,
    or as the system has it for a new one, whatever a library made of the draft: safetensors' is its owner's
    alone.
    An error that a library raises for a failed write without being an ``OSError``, as safetensors does, is
    the caller's to turn into one.
    """
    target = Path(path)
    check_place(target)
    if target.exists() and not target.is_file():
        raise KloraError(f"{target} is no ordinary file; name another to write to.")
    draft = target.with_name(f"{target.stem}.{os.getpid()}.part{target.suffix}")
    try:
        draft.touch()  # tells a new file's mode; to read the umask is to change it, for all threads
        mode = _mode(target if target.exists() else draft)
        yield draft
        _set_mode(draft, mode)
        draft.replace(target)
    except OSError as error:
        raise KloraError(_sentence(target, error)) from error
    finally:
        _remove(draft)


def _mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def _set_mode(file: Path, mode: int) -> None:
    """Who may read and write ``file``; Windows knows no such modes but a mark that hinders its removal."""
    if os.name == "posix" and _mode(file) != mode:
        with suppress(OSError):  # the file counts, and some disks, such as a USB stick, know no modes
            file.chmod(mode)


def _sentence(target: Path, error: OSError) -> str:
    if not target.parent.is_dir():
        return _without_folder(target)
    return f"{target} cannot be written ({_reason(error)}); name another place or make room there."


def _without_folder(target: Path) -> str:
    return f"{target} cannot be written: there is no folder {target.parent}; make it or name another."


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _remove(draft: Path) -> None:
    try:
        draft.unlink(missing_ok=True)
    except OSError:
        return  # the folder is gone or read-only: then the draft was never there
