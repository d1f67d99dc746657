"""PEFT's ``alpha_pattern`` and ``rank_pattern``: regular expressions for the ends of layers' names.

PEFT takes the first pattern for which ``(.*\\.)?(PATTERN)$`` matches the name from its beginning (its
``get_pattern_key``). They come from a file, so they are not trusted: what could take for ever is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from klora.files.defects import defect_error, shown

#: Patterns without wildcards are looked up; each of the others is tried on each layer.
_MOST_WILD, _MOST_PLAIN, _LONGEST = 200, 20_000, 400
_MOST_REPEATS = 3

_PLAIN = re.compile(r"(?:[\w.-]|\\[.-])+")
_REPEAT = re.compile(r"(?<!\\)[*+{]")
#: A repeated group can take exponential time, and no pattern for names needs one.
_REPEATED_GROUP = re.compile(r"(?<!\\)\)\s*[*+{]")
_REMEDY = "write the layers' names out in the adapter configuration"


class Patterns:
    """The patterns of one table, and which of them matched anything."""

    def __init__(self, table: object, what: str, file: str) -> None:
        self._what = what
        self._table: Mapping[str, object] = _checked(table, what, file)
        self._plain: dict[str, list[str]] = {}
        self._wild: list[str] = []
        for pattern in self._table:
            if _PLAIN.fullmatch(pattern):
                self._plain.setdefault(_smoothed(pattern), []).append(pattern)
            else:
                self._wild.append(pattern)
        self._order = {pattern: place for place, pattern in enumerate(self._table)}
        self._compiled = {pattern: _compiled(pattern, what, file) for pattern in self._wild}
        if len(self._wild) > _MOST_WILD or len(self._table) > _MOST_PLAIN:
            raise defect_error(
                file, f"its {what} has {len(self._table)} patterns, too many to follow", _REMEDY
            )
        self._matched: set[str] = set()

    def value(self, names: tuple[str, ...], general: object) -> object:
        """The value of the first pattern that matches one of ``names``, which name the same layer."""
        for name in names:
            if (pattern := self._first(name)) is not None:
                self._matched.add(pattern)
                return self._table[pattern]
        return general

    def _first(self, name: str) -> str | None:
        candidates = [*self._wild]
        words = _smoothed(name).split(".")
        for start in range(len(words)):
            candidates += self._plain.get(".".join(words[start:]), ())
        fitting = (one for one in candidates if self._expression(one).match(name))
        return min(fitting, key=self._order.__getitem__, default=None)

    def _expression(self, pattern: str) -> re.Pattern[str]:
        # Those without wildcards are compiled when they are candidates: there may be thousands.
        if pattern not in self._compiled:
            self._compiled[pattern] = re.compile(rf"(.*\.)?({pattern})$")
        return self._compiled[pattern]

    def notes(self) -> tuple[str, ...]:
        """A sentence for the patterns that matched no layer so far."""
        idle = [pattern for pattern in self._table if pattern not in self._matched]
        if not idle:
            return ()
        more = f" (and {len(idle) - 1} more)" if len(idle) > 1 else ""
        return (f"{self._what} {shown(idle[0], 60)!r}{more} matches no layer of the file",)


def _smoothed(text: str) -> str:
    """A dot stands for any character in a pattern, so all that it may stand for in a name is made one."""
    return re.sub(r"[._-]", ".", text.replace("\\", ""))


def _checked(table: object, what: str, file: str) -> Mapping[str, object]:
    if table is None:
        return {}
    if not isinstance(table, dict):
        raise defect_error(file, f"its {what} is not a table", _REMEDY)
    return table


def _compiled(pattern: str, what: str, file: str) -> re.Pattern[str]:
    try:
        if (
            len(pattern) > _LONGEST
            or len(_REPEAT.findall(pattern)) > _MOST_REPEATS
            or _REPEATED_GROUP.search(pattern)
        ):
            raise ValueError
        return re.compile(rf"(.*\.)?({pattern})$")
    except (ValueError, re.error, RecursionError, OverflowError) as error:
        defect = f"its {what} has a pattern that cannot be followed: {shown(pattern, 60)}"
        raise defect_error(file, defect, _REMEDY) from error
