"""K, the number of elements of a layer that take part in its Top-K sum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

_REMEDY = "write rank, a whole number of at least 1 such as 64, or a share such as 0.1%"


@dataclass(frozen=True)
class TopK:
    """How K is found for a layer.

    ``rank``: K = r_c * r_s (the paper). ``fixed``: K = ``amount``. ``share``: ``amount`` percent of
    the layer's elements. Always clamped to 1 .. number of elements.
    """

    form: Literal["rank", "fixed", "share"]
    amount: float = 0.0

    @staticmethod
    def parse(text: str) -> TopK:
        """Read ``rank``, ``64`` or ``0.1%``; raise ``ValueError`` with the remedy otherwise."""
        word = text.strip().lower()
        if word == "rank":
            return TopK("rank")
        is_share = word.endswith("%")
        try:
            amount = float(word.removesuffix("%"))
        except ValueError as error:
            raise ValueError(_REMEDY) from error
        if is_share and 0 < amount <= 100:
            return TopK("share", amount)
        if not is_share and 1 <= amount <= 1e12 and amount == math.floor(amount):
            return TopK("fixed", amount)
        raise ValueError(_REMEDY)

    def __str__(self) -> str:
        if self.form == "rank":
            return "rank"
        return f"{self.amount:.12g}%" if self.form == "share" else str(int(self.amount))

    def of(self, rank_content: int, rank_style: int, elements: int) -> int:
        """K for a layer of ``elements`` weights whose LoRAs have these ranks."""
        if self.form == "rank":
            wanted = rank_content * rank_style
        elif self.form == "fixed":
            wanted = int(self.amount)
        else:
            wanted = round(self.amount / 100 * elements)
        return max(1, min(wanted, elements))


def normal_top_k(text: str) -> str:
    """The normal spelling of a Top-K setting: ``' 64.0 '`` is ``'64'``."""
    return str(TopK.parse(text))
