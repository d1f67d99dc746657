"""The plan: how much of each LoRA each layer applies at each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klora.schedule.shares import Shares
from klora.scores import Scores

Numbers = NDArray[np.float64]

#: Names that JSON had for the two numbers of the contest before there was more than one rule.
_CONTENT_SCORE, _STYLE_SCORE = "content_score", "style_score"


@dataclass(frozen=True, eq=False)
class Plan:
    """Layers x steps x LoRAs.

    ``loras`` are the names of the cast in its order: content and style first, where there is a pair.
    ``layers`` are those whose shares the rule decides, in the order of a forward pass; ``shares`` and
    ``unconditional`` are ``[steps, layers, loras]``, the latter ``None`` if it is the same. ``measure`` is
    what the scores of the contest are measured by, ``gamma`` what balances them, if anything does. ``told``
    are the settings that made the plan: rule, balance and so on, for whoever reads it.
    """

    loras: tuple[str, ...]
    layers: tuple[str, ...]
    shares: Numbers
    unconditional: Numbers | None = None
    scores: Scores | None = None
    measure: str | None = None
    gamma: float | None = None
    told: Mapping[str, Any] | None = None

    @staticmethod
    def table(shares: Sequence[Shares], places: Sequence[int], loras: int) -> tuple[Numbers, Numbers | None]:
        """(conditional, unconditional or None), each ``[steps, layers, loras]``, of the layers at
        ``places``.
        """
        size = len(shares), len(places), loras
        places = list(places)
        conditional = np.array([one.conditional[places] for one in shares], dtype=np.float64).reshape(size)
        if all(one.unconditional is None for one in shares):
            return conditional, None
        both = [one.conditional if one.unconditional is None else one.unconditional for one in shares]
        return conditional, np.array([one[places] for one in both], dtype=np.float64).reshape(size)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return int(self.shares.shape[0])

    @property
    def content_part(self) -> Numbers:
        """Content's part of what content and style get, ``[steps, layers]`` from 0 to 1; half where neither
        gets anything."""
        amounts = np.abs(self.shares[:, :, :2])
        both = amounts.sum(axis=2)
        part: Numbers = np.divide(amounts[:, :, 0], both, out=np.full(both.shape, 0.5), where=both > 0)
        return part

    @property
    def content_leads(self) -> NDArray[np.bool_]:
        """Where content has at least the style's share, ``[steps, layers]``."""
        leads: NDArray[np.bool_] = self.shares[:, :, 0] >= self.shares[:, :, 1]
        return leads

    @property
    def content_share(self) -> float:
        """Content's part of the layer-steps, 0 to 1; 0 for an empty plan."""
        part = self.content_part
        return float(part.mean()) if part.size else 0.0

    @property
    def flips(self) -> int:
        """How many times, over all layers, the shares change between two steps."""
        return int((self.shares[1:] != self.shares[:-1]).any(axis=2).sum())

    def choices(self) -> list[str]:
        """One string per step, one letter per layer: C where content has at least the style's share,
        else S.
        """
        return ["".join("C" if leads else "S" for leads in step) for step in self.content_leads]

    def as_json(self) -> dict[str, Any]:
        """The plan as plain data; the scores are the numbers of the contest before gamma and scale."""
        return {
            "layers": list(self.layers),
            "steps": self.steps,
            "gamma": self.gamma,
            **self._scores_as_json(),
            "choices": self.choices(),
            "loras": list(self.loras),
            "shares": self.shares.tolist(),
            "unconditional": None if self.unconditional is None else self.unconditional.tolist(),
            **(self.told or {}),
        }

    def _scores_as_json(self) -> dict[str, Any]:
        if self.scores is None or self.measure is None:
            return {"top_k": None, _CONTENT_SCORE: None, _STYLE_SCORE: None}
        return {
            "top_k": list(self.scores.top_k) if any(self.scores.top_k) else None,
            _CONTENT_SCORE: self.scores.content(self.measure).tolist(),
            _STYLE_SCORE: self.scores.style(self.measure).tolist(),
        }
