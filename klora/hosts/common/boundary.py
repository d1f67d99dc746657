"""The boundary between script and host, the one place where every exception is caught."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TypeVar

from klora.errors import KloraError

T = TypeVar("T")


class UnforeseenError(KloraError):
    """An error that nobody foresaw: a fault of ours, or of somebody's whose code runs inside ours.

    ``what`` is its kind and message.
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
        return UnforeseenError(f"{type(error).__name__}: {error}")
