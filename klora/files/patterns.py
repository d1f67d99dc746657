"""PEFT's ``alpha_pattern`` and ``rank_pattern``: regular expressions for the ends of layers' names.

PEFT takes the first pattern for which ``(.*\\.)?(PATTERN)$`` matches the name from its beginning (its
``get_pattern_key``). They come from a file, so they are not trusted: what could take for ever is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from time import process_time

from klora.files.defects import defect_error, shown

#: Patterns with no wildcard but dots are looked up, all with dots at the same places at once; each of the
#: others is tried on each layer.
_MOST_TRIED, _MOST, _LONGEST = 300, 20_000, 400
_MOST_REPEATS = 3

#: Processor's time for all patterns of a table. A match cannot be interrupted, and can take the fourth
#: power of the name's length; a name of this length takes some tenths of a second at worst.
_MOST_SECONDS, _LONGEST_NAME = 2.0, 150

_PLAIN = re.compile(r"(?:[\w.-]|\\[.-])+")
_REPEAT = re.compile(r"(?<!\\)[*+{]")
#: A repeated group can take exponential time, and no pattern for names needs one.
_REPEATED_GROUP = re.compile(r"(?<!\\)\)\s*[*+{]")
_REMEDY = "write the layers' names out in the adapter configuration"


#: Where the dots of a pattern without other wildcards stand, and how long it is.
_Mask = tuple[int, tuple[int, ...]]


class Patterns:
    """The patterns of one table, and which of them matched anything."""

    def __init__(self, table: object, what: str, file: str) -> None:
        self._what = what
        self._table: Mapping[str, object] = _checked(table, what, file)
        self._order = {pattern: place for place, pattern in enumerate(self._table)}
        self._plain: dict[_Mask, dict[str, str]] = {}
        self._wild: dict[str, re.Pattern[str]] = {}
        for pattern in self._table:
            if _PLAIN.fullmatch(pattern):
                mask, text = _masked(pattern)
                self._plain.setdefault(mask, {}).setdefault(text, pattern)
            else:
                self._wild[pattern] = _compiled(pattern, what, file)
        if len(self._wild) + len(self._plain) > _MOST_TRIED or len(self._table) > _MOST:
            raise defect_error(
                file, f"its {what} has {len(self._table)} patterns, too many to follow", _REMEDY
            )
        self._matched: set[str] = set()
        self._file = file
        self._seconds = 0.0

    def value(self, names: tuple[str, ...], general: object) -> object:
        """The value of the first pattern that matches one of ``names``, which name the same layer.

        Raises `LoraFileError` if the patterns take too long.
        """
        for name in names:
            if (pattern := self._first(name)) is not None:
                self._matched.add(pattern)
                return self._table[pattern]
        return general

    def _first(self, name: str) -> str | None:
        found = self._tried(name)
        starts = [0, *(place + 1 for place, letter in enumerate(name) if letter == ".")]
        ends = {len(name) - start: name[start:] for start in starts}
        for (length, dots), patterns in self._plain.items():
            if length in ends and (pattern := patterns.get(_blanked(ends[length], dots))) is not None:
                found.append(pattern)
        return min(found, key=self._order.__getitem__, default=None)

    def _tried(self, name: str) -> list[str]:
        """Those of the patterns with wildcards that match."""
        if not self._wild:
            return []
        if len(name) > _LONGEST_NAME or self._seconds > _MOST_SECONDS:
            raise defect_error(self._file, f"its {self._what} takes too long to follow", _REMEDY)
        begun = process_time()
        found = [pattern for pattern, expression in self._wild.items() if expression.match(name)]
        self._seconds += process_time() - begun
        return found

    def notes(self) -> tuple[str, ...]:
        """A sentence for the patterns that matched no layer so far."""
        idle = [pattern for pattern in self._table if pattern not in self._matched]
        if not idle:
            return ()
        more = f" (and {len(idle) - 1} more)" if len(idle) > 1 else ""
        return (f"{self._what} {shown(idle[0], 60)!r}{more} matches no layer of the file",)


def _masked(pattern: str) -> tuple[_Mask, str]:
    """A pattern whose only wildcards are dots: where these stand, and its text with them blanked."""
    letters = re.findall(r"\\.|.", pattern)
    dots = tuple(place for place, letter in enumerate(letters) if letter == ".")
    return (len(letters), dots), _blanked("".join(letter[-1] for letter in letters), dots)


def _blanked(text: str, places: tuple[int, ...]) -> str:
    letters = list(text)
    for place in places:
        letters[place] = "\0"
    return "".join(letters)


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
