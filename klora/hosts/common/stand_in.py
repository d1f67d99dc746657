"""One function of the host's, for a moment another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stand_in(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Let ``function`` be ``owner``'s function ``name`` while inside; its own is put back on the way out."""
    before = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, before)
