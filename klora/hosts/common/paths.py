"""Text that leaves the server says nothing of where it keeps its files."""

from __future__ import annotations

import re

_PATH = re.compile(r"(?:[A-Za-z]:)?(?:[\\/][^\\/:*?\"'<>|\s]+)+[\\/](?=[^\\/\s])")
_QUOTED_PATH = re.compile(
    r"(?P<quote>['\"])(?:[A-Za-z]:)?[\\/][^'\"\n]*[\\/](?P<name>[^\\/'\"\n]*)(?P=quote)"
)


def without_paths(text: str) -> str:
    """``text`` with the folders of every absolute path taken away; the file's name stays.

    A path with spaces is told by the quotes around it.
    """
    return _PATH.sub("", _QUOTED_PATH.sub(r"\g<quote>\g<name>\g<quote>", text))
