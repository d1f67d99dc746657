"""Numbers of the command line that count something."""

from __future__ import annotations

from argparse import Namespace

from klora.errors import KloraError


def check_counts(chosen: Namespace, *names: str) -> None:
    """Raise `KloraError` for a named argument below 1; one that was left out may be ``None``."""
    for name in names:
        count = getattr(chosen, name)
        if count is not None and count < 1:
            raise KloraError(f"--{name} is {count}; write a number of at least 1.")
