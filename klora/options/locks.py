"""Locks by block as people write them: ``in4=C mid=S out0-2=auto``, or ``double0-5=C single10=S``."""

from __future__ import annotations

import re
from dataclasses import dataclass

NO_LOCKS = "auto"

#: What a lock may say, in its normal spelling: content, style, both, neither, or what the rule decides.
CHOICES = ("C", "S", "both", "none", "auto")

_LAST = {"in": 11, "out": 11, "double": 199, "single": 199, "block": 199}
_BLOCKS = re.compile(r"(in|out|double|single|block)(\d{1,3})(?:-(\d{1,3}))?|mid")


@dataclass(frozen=True)
class Lock:
    """The blocks ``first`` to ``last`` of a ``group`` (both 0 for ``mid``), and one of `CHOICES`."""

    group: str
    first: int
    last: int
    choice: str

    def __str__(self) -> str:
        if self.group == "mid":
            return f"mid={self.choice}"
        numbers = f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"
        return f"{self.group}{numbers}={self.choice}"


def parse_locks(text: str) -> tuple[Lock, ...]:
    """The locks of a text, none for ``auto``; raises ``ValueError`` naming a part that is not understood."""
    if text.strip().lower() in ("", NO_LOCKS):
        return ()
    return tuple(_lock(part) for part in text.replace(",", " ").split())


def normal_locks(text: str) -> str:
    """The normal spelling: ``' IN4=c  mid=s '`` is ``in4=C mid=S``."""
    return " ".join(map(str, parse_locks(text))) or NO_LOCKS


def _lock(part: str) -> Lock:
    name, _, said = part.partition("=")
    found = _BLOCKS.fullmatch(name.lower())
    choice = next((one for one in CHOICES if one.lower() == said.lower()), None)
    if found is None:
        raise ValueError(
            f"{part} names no block; write in0 to in11, mid, out0 to out11, of transformers double0, single0 "
            "or block0 and so on, such as in4=C mid=S out0-2=auto"
        )
    if choice is None:
        raise ValueError(f"{part} does not say what to do; write {name}= and one of {', '.join(CHOICES)}")
    if found[1] is None:
        return Lock("mid", 0, 0, choice)
    first = int(found[2])
    last = first if found[3] is None else int(found[3])
    if not first <= last <= _LAST[found[1]]:
        raise ValueError(f"{part} has numbers out of order or above {_LAST[found[1]]}, the last {found[1]}")
    return Lock(found[1], first, last, choice)
