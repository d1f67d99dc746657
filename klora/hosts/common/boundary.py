"""The boundary between script and host, the one place where every exception is caught."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, TypeVar

from klora.errors import KloraError
from klora.hosts.common.paths import without_paths

T = TypeVar("T")

#: What torch and the system say where no class of error does.
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class OutOfMemoryError(KloraError):
    """Memory ran out while K-LoRA was at work."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"K-LoRA: memory ran out ({what}); make the picture smaller, close other programs, or untick "
            "K-LoRA."
        )


class DiskError(KloraError):
    """The disk is full, or the system refuses to read or write."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"K-LoRA: the system would not read or write a file ({what}); make room on the disk or check the "
            "file's permissions, then generate again."
        )


class UnforeseenError(KloraError):
    """An error that nobody foresaw: a fault of ours, or of somebody's whose code runs inside ours.

    ``what`` is its type and message.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            f"K-LoRA met an error that it does not know ({what}); report it with what the console says, "
            "or untick K-LoRA."
        )
        self.what = what


def for_api(error: KloraError) -> KloraError:
    """``error`` with what the host's API makes an answer of: status 422 and the sentence."""
    setattr(error, "status_code", 422)  # noqa: B010 - attributes that the host's API looks for
    setattr(error, "detail", str(error))  # noqa: B010
    return error


def attempted(action: Callable[[], T]) -> T | KloraError:
    """What ``action`` returns, or the error that it raised, in a sentence fit for the user.

    Caught is everything, because the host would print it and go on to make the picture without K-LoRA. Of an
    error that nobody foresaw the rest goes to the console.
    """
    try:
        return action()
    except KloraError as error:
        return error
    except Exception as error:  # noqa: BLE001
        traceback.print_exception(error)
        return _named(error)


def _named(error: Exception) -> KloraError:
    what = without_paths(_first_line(error))
    if is_lack_of_memory(error):
        return OutOfMemoryError(what)
    if isinstance(error, OSError) and error.strerror is not None:
        return DiskError(what)
    named = f"{type(error).__name__}: {what}"
    return UnforeseenError(named)


def is_lack_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _NO_MEMORY)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def done(action: Callable[[], T]) -> T:
    """What ``action`` returns; raises its error in a sentence, as the host's API answers it."""
    found = attempted(action)
    if isinstance(found, KloraError):
        raise for_api(found)
    return found


class InSentences(AbstractContextManager[None]):
    """Inside ``context``: errors of its own, on the way in and out, are raised in sentences.

    What happens inside is raised as it is, errors of ours with what the host's API answers.
    """

    def __init__(self, context: AbstractContextManager[Any]) -> None:
        self._context = context

    def __enter__(self) -> None:
        done(self._context.__enter__)

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if isinstance(error, KloraError):
            for_api(error)
        if error is not None:
            return self._context.__exit__(error_type, error, trace)
        done(lambda: self._context.__exit__(None, None, None))
        return None
