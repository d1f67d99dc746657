"""The bounds of a request to the routes: its size, how many at a time and for how long, what an error tells.

Whoever may ask the WebUI's API may send anything; no request may fill its memory, its threads or its time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock, Semaphore
from typing import Any, TypeVar

from klora.errors import KloraError, PairError
from klora.hosts.common.paths import without_paths

#: Of the body. All settings written out are some 3 kB.
MOST_BYTES = 100_000

#: Requests that may be under way: one that is answered, and others that wait for it.
MOST_AT_ONCE = 4

#: Seconds for which a request waits for the one before it.
PATIENCE = 30.0

#: Seconds after which the scoring of a pair is given up, at the next layer.
MOST_SECONDS = 120.0

#: Characters of an error.
MOST_TOLD = 1000

Request = Mapping[str, object]
T = TypeVar("T")


class RefusedRequestError(KloraError):
    """A request that is not answered; ``status`` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def read_body(request: Any) -> Request:
    """The JSON object of FastAPI's ``request``; raises `RefusedRequestError`.

    Read piece by piece here, because FastAPI would take a body of any size into memory.
    """
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        if len(raw) > MOST_BYTES:
            raise RefusedRequestError(413, f"K-LoRA: a request has at most {MOST_BYTES} bytes; send names.")
    try:
        told = json.loads(raw)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise RefusedRequestError(422, "K-LoRA: send one JSON object.")
    return told


class Turns:
    """One answer is made at a time; a few requests wait for it, any more are refused at once."""

    def __init__(self) -> None:
        self._places = Semaphore(MOST_AT_ONCE)
        self._turn = Lock()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """One's turn; raises `RefusedRequestError` if it does not come."""
        if not self._places.acquire(blocking=False):
            raise self._busy()
        try:
            if not self._turn.acquire(timeout=PATIENCE):
                raise self._busy()
            try:
                yield
            finally:
                self._turn.release()
        finally:
            self._places.release()

    @staticmethod
    def _busy() -> RefusedRequestError:
        return RefusedRequestError(429, "K-LoRA is busy with other plans or reports; ask again later.")


def in_time(layers: Iterable[T]) -> Iterator[T]:
    """``layers``, for `MOST_SECONDS`; then raises `PairError`."""
    end = time.monotonic() + MOST_SECONDS
    for layer in layers:
        if time.monotonic() > end:
            raise PairError(
                f"K-LoRA: scoring this pair takes more than {MOST_SECONDS:.0f} seconds; run klora plan on "
                "the command line, which takes the time that it needs."
            )
        yield layer


def told(error: KloraError) -> str:
    """An error as it leaves the server: of bounded length, and without paths."""
    text = without_paths(str(error))
    return text if len(text) <= MOST_TOLD else text[: MOST_TOLD - 1] + "…"
