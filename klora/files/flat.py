"""Names with underscores for dots, as kohya's scripts and the WebUIs write them."""

from __future__ import annotations


def flattened(path: str) -> str:
    """The flat form of a dotted path; `klora.files.native.canonical_from_flat` leads back."""
    return path.replace(".", "_")
