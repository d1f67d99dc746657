"""The driver of one sampling pass: what the plan says goes to the seam, and only what changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from klora.errors import PairError
from klora.schedule import Plan, Rule
from klora.scores import Contest, Scores, score_layer
from klora.settings import Settings, TopK
from klora.weights.seam import LayerView, Seam, Winner

Choice = NDArray[np.bool_]
Progress = Callable[[Iterable[LayerView]], Iterable[LayerView]]

_FIXED = {"both": Winner.BOTH, "content": Winner.CONTENT, "style": Winner.STYLE, "none": Winner.NONE}

#: Scores of the pairs used last. A few kilobytes each; people go back and forth between a few pairs.
_MOST_KEPT = 32
_kept_scores: OrderedDict[Hashable, Scores] = OrderedDict()


def prepare(seam: Seam, settings: Settings, progress: Progress = iter) -> Fusion:
    """Score the pair behind ``seam``, or take the scores kept from last time, and set up a fusion.

    ``progress`` wraps the layers to be scored, as tqdm does. Raises `PairError` if the two share no
    attention layer and `LoraFileError` if a delta is not finite.
    """
    shared = seam.shared_layers()
    if not any(one.attention for one in shared):
        raise PairError(
            f"{seam.content_name} and {seam.style_name} share no attention layer, so there is nothing to "
            "fuse; pick two LoRAs that were trained on attention layers of this base model."
        )
    contested = [one for one in shared if one.attention or settings.other_layers == "fuse"]
    fixed = {} if settings.other_layers == "fuse" else _fixed(shared, settings.other_layers)
    scores = _scores(seam, contested, settings.top_k_rule, progress)
    return Fusion(seam, Rule.of(scores, settings), fixed)


def _fixed(shared: Sequence[LayerView], other_layers: str) -> dict[str, Winner]:
    return {one.name: _FIXED[other_layers] for one in shared if not one.attention}


def _scores(seam: Seam, contested: Sequence[LayerView], top_k: TopK, progress: Progress) -> Scores:
    key = (seam.score_key(), top_k, tuple(one.name for one in contested))
    if key not in _kept_scores:
        _kept_scores[key] = Scores(tuple(_score(seam, one, top_k) for one in progress(contested)))
        while len(_kept_scores) > _MOST_KEPT:
            _kept_scores.popitem(last=False)
    _kept_scores.move_to_end(key)
    return _kept_scores[key]


def _score(seam: Seam, layer: LayerView, top_k: TopK) -> Contest:
    content, style = seam.deltas(layer.name)
    return score_layer(
        layer.name,
        content,
        style,
        top_k,
        content_rank=layer.content_rank,
        style_rank=layer.style_rank,
        content_file=seam.content_name,
        style_file=seam.style_name,
    )


class Fusion:
    """One sampling pass: tells the seam who wins, and remembers what won where.

    Use it as ``with fusion.sampling(): ...`` and call `at_step` or `at_progress` before each forward
    pass. ``changed`` counts the layers touched so far, the first application included.
    """

    def __init__(self, seam: Seam, rule: Rule, fixed: Mapping[str, Winner]) -> None:
        self.rule = rule
        self.changed = 0
        self._seam = seam
        self._fixed = dict(fixed)
        self._applied: Choice | None = None
        self._record: dict[int, Choice] = {}

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers whose winner is decided here, contested or fixed."""
        return (*self.rule.scores.layers, *self._fixed)

    @contextmanager
    def sampling(self) -> Iterator[Fusion]:
        """Hold the pair back from the host inside; everything is given back on the way out."""
        self._applied = None
        with self._seam.withheld(self.layers):
            if self._fixed:
                self._seam.apply(self._fixed)
            yield self

    def at_step(self, step: int, steps: int) -> int:
        """Apply what wins at ``step`` of ``steps``; return the number of layers touched."""
        return self._apply(step, self.rule.at_step(step, steps))

    def at_progress(self, step: int, progress: float) -> int:
        """Apply what wins at ``progress`` (0 to 1), recorded as ``step``; return the layers touched."""
        return self._apply(step, self.rule.content_wins(progress))

    def plan(self) -> Plan:
        """What won where in the steps that were run."""
        return self.rule.recorded([self._record[step] for step in sorted(self._record)])

    def _apply(self, step: int, choice: Choice) -> int:
        self._record.setdefault(step, choice)
        touched = np.ones_like(choice) if self._applied is None else choice != self._applied
        winners = {
            layer: Winner.CONTENT if wins else Winner.STYLE
            for layer, wins, is_touched in zip(self.rule.scores.layers, choice, touched, strict=True)
            if is_touched
        }
        if winners:
            self._seam.apply(winners)
        self._applied = choice
        self.changed += len(winners)
        return len(winners)
