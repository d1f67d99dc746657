"""From the LoRAs of a cast and the settings to the shares at any moment, and to the plan of a sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klora.errors import PairError
from klora.options import TopK
from klora.planning.cast import Cast, LayerView, Loras
from klora.planning.locks import LockedLayers, locked_layers
from klora.planning.scoring import Progress, scores_of
from klora.rules import BOTH, CONTENT, STYLE, Contest, Decides, Rule, unconditional_factors
from klora.schedule import ALWAYS, Moment, Plan, Shares
from klora.settings import Settings

Numbers = NDArray[np.float64]

#: Setting ``other_layers`` -> shares of content and style in layers that both change and no contest decides.
_OTHER_LAYERS = {"both": (1.0, 1.0), "content": (1.0, 0.0), "style": (0.0, 1.0), "none": (0.0, 0.0)}


@dataclass(frozen=True, eq=False)
class Planner:
    """Knows the shares of every layer at every moment. Nothing in it depends on time.

    ``layers`` are all that a LoRA of the cast changes, ``decided`` the places among them of those that the
    rule decides, ``fixed`` the shares of the others, ``[layers, loras]``, ``locked`` what the user decides
    among the decided ones.
    """

    cast: Cast
    layers: tuple[LayerView, ...]
    decided: tuple[int, ...]
    fixed: Numbers
    contest: Contest
    settings: Settings
    locked: LockedLayers | None = None

    @property
    def rule(self) -> Rule:
        """The rule that decides about the pair."""
        return self.settings.chosen_rule

    def moving_members(self) -> set[int]:
        """The places in the cast of the LoRAs whose shares a window or the guidance may change anywhere."""
        moving = {place for place, one in enumerate(self.cast.members) if one.window != ALWAYS}
        if self.cast.has_pair and self.settings.guidance != BOTH:
            moving |= {CONTENT, STYLE}
        return moving

    def shares(self, moment: Moment) -> Shares:
        """The shares of all layers at a moment."""
        conditional = self.fixed.copy()
        if self.cast.has_pair and self.decided:
            conditional[list(self.decided), :2] = self._decide(moment)
        for place, member in enumerate(self.cast.members):
            factor = member.window.share(moment)
            if factor != 1:
                conditional[:, place] *= factor
        conditional[~self._changes] = 1  # nothing to be done about it, so nothing that changes in time
        return Shares(conditional, self._unconditional(conditional, moment))

    def _decide(self, moment: Moment) -> Numbers:
        """The shares of content and style in the decided layers, ``[layers, 2]``: the rule's or the
        locks'.
        """
        left_alone = self._left_alone()
        if left_alone is None:
            shares = self.rule.shares(self.contest, moment)
        else:
            shares = np.tile(left_alone, (self.contest.layers, 1))
        return shares if self.locked is None else self.locked.over(shares)

    def _left_alone(self) -> tuple[float, float] | None:
        """The shares where one of the two weighs nothing at all, at weight 0 say: it leaves the contest."""
        measured = self.contest.scores.measured.values()
        content, style = (any(bool(one[:, place].any()) for one in measured) for place in (CONTENT, STYLE))
        if content == style:
            return None
        return (1.0, 0.0) if content else (0.0, 1.0)

    def _unconditional(self, conditional: Numbers, moment: Moment) -> Numbers | None:
        if not self.cast.has_pair:
            return None
        factors = unconditional_factors(self.settings.guidance, moment.guidance_scale)
        if factors is None:
            return None
        unconditional: Numbers = conditional.copy()
        unconditional[:, :2] *= factors
        unconditional[~self._changes] = 1
        return unconditional

    @cached_property
    def _changes(self) -> NDArray[np.bool_]:
        """Whether a LoRA of the cast changes a layer, ``[layers, loras]``."""
        table = np.zeros(self.fixed.shape, dtype=bool)
        for place, layer in enumerate(self.layers):
            table[place, list(layer.ranks)] = True
        return table

    def plan(self, moments: Sequence[Moment]) -> Plan:
        """The plan of a sampling that consists of these moments."""
        return self.recorded([self.shares(moment) for moment in moments])

    def recorded(self, shares: Sequence[Shares]) -> Plan:
        """The plan that consists of these shares, one for each step, as they were applied."""
        conditional, unconditional = Plan.table(shares, self.decided, len(self.cast.members))
        for table in (conditional, unconditional):
            if table is not None:
                table[:, ~self._changes[list(self.decided)]] = 0
        measures = self.rule.measures(self.settings.values) if self.cast.has_pair else ()
        return Plan(
            loras=self.cast.names,
            layers=self.contest.scores.layers,
            shares=conditional,
            unconditional=unconditional,
            scores=self.contest.scores if measures else None,
            measure=measures[0] if measures else None,
            gamma=self.rule.gamma(self.contest) if self.cast.has_pair else None,
            told=self._told(),
        )

    def _told(self) -> dict[str, Any]:
        if not self.cast.has_pair:
            return {}
        return {"rule": self.rule.name, "balance": self.settings.balance, "guidance": self.settings.guidance}


def make_planner(loras: Loras, cast: Cast, settings: Settings, progress: Progress = iter) -> Planner:
    """Score what the rule decides by, and set up a planner.

    ``progress`` wraps the layers to be scored, as tqdm does. Raises `PairError` if the rule contests layers
    and the pair shares no attention layer, `SettingsError` for locks of blocks that the model does not have,
    and `LoraFileError` if a delta is not finite.
    """
    layers = tuple(loras.layers())
    fixed = np.ones((len(layers), len(cast.members)))
    if not cast.has_pair:
        decided = tuple(range(len(layers)))
        return Planner(cast, layers, decided, fixed, _contest(loras, layers, settings, ()), settings)
    decides = settings.chosen_rule.decides
    decided = _decided(loras, layers, decides, str(settings.values["other_layers"]))
    if decides is Decides.CONTESTED:
        _fix_other_layers(fixed, layers, decided, str(settings.values["other_layers"]))
    measures = settings.chosen_rule.measures(settings.values)
    contested = [layers[place] for place in decided]
    locked = locked_layers(settings.chosen_rule, settings.values, [one.name for one in contested])
    contest = _contest(loras, contested, settings, measures, progress)
    return Planner(cast, layers, decided, fixed, contest, settings, locked)


def _contest(
    loras: Loras,
    layers: Sequence[LayerView],
    settings: Settings,
    measures: Sequence[str],
    progress: Progress = iter,
) -> Contest:
    top_k = TopK.parse(str(settings.values["top_k"]))
    return Contest(scores_of(loras, layers, measures, top_k, progress), settings.values)


def _decided(
    loras: Loras, layers: Sequence[LayerView], decides: Decides, other_layers: str
) -> tuple[int, ...]:
    if decides is Decides.ALL:
        return tuple(place for place, one in enumerate(layers) if {CONTENT, STYLE} & one.ranks.keys())
    if not any(one.is_shared and one.is_attention for one in layers):
        content, style, *_ = loras.names
        raise PairError(
            f"{content} and {style} share no attention layer, so there is nothing to "
            "fuse; pick two LoRAs that were trained on attention layers of this base model."
        )
    return tuple(
        place
        for place, one in enumerate(layers)
        if one.is_shared and (one.is_attention or other_layers == "fuse")
    )


def _fix_other_layers(
    fixed: Numbers, layers: Sequence[LayerView], decided: Sequence[int], other_layers: str
) -> None:
    contested = set(decided)
    for place, one in enumerate(layers):
        if one.is_shared and place not in contested:
            fixed[place, :2] = _OTHER_LAYERS[other_layers]
