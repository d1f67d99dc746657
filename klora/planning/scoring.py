"""The scores of a pair, taken once and kept: the one way for command line, preview, route and sampling."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Protocol, runtime_checkable

from klora.options import TopK
from klora.planning.cast import LayerView, Loras
from klora.scores import DeltaRows, LayerScore, Scores, Scratch, score_layer


@runtime_checkable
class ByRows(Protocol):
    """LoRAs that need not form a dW whole to have it scored."""

    def delta_rows(self, layer: str) -> tuple[DeltaRows, DeltaRows]:
        """dW of content and style as `Loras.deltas` gives them, formed some rows at a time."""
        ...


Progress = Callable[[Iterable[LayerView]], Iterable[LayerView]]

#: Scores of the pairs used last. A few kilobytes each; people go back and forth between a few pairs.
MOST_KEPT = 32
_kept: OrderedDict[Hashable, Scores] = OrderedDict()


def scores_of(
    loras: Loras,
    layers: Sequence[LayerView],
    measures: Sequence[str],
    top_k: TopK,
    progress: Progress = iter,
) -> Scores:
    """The scores of ``layers`` by ``measures``, or those kept from last time.

    ``progress`` wraps the layers to be scored, as tqdm does. Raises `LoraFileError` if a delta is not finite.
    """
    names = tuple(layer.name for layer in layers)
    if not measures:
        return Scores(names, (0,) * len(names), {})
    key = (loras.score_key(), top_k, tuple(measures), names)
    if key not in _kept:
        _kept[key] = _taken(loras, layers, measures, top_k, progress)
        while len(_kept) > MOST_KEPT:
            _kept.popitem(last=False)
    _kept.move_to_end(key)
    return _kept[key]


def forget_scores() -> None:
    """Forget all scores that are kept."""
    _kept.clear()


def kept_scores() -> int:
    """How many pairs' scores are kept."""
    return len(_kept)


def _taken(
    loras: Loras, layers: Sequence[LayerView], measures: Sequence[str], top_k: TopK, progress: Progress
) -> Scores:
    scratch = Scratch()
    return Scores.of((_score(loras, one, measures, top_k, scratch) for one in progress(layers)), measures)


def _score(
    loras: Loras, layer: LayerView, measures: Sequence[str], top_k: TopK, scratch: Scratch
) -> LayerScore:
    deltas = loras.delta_rows if isinstance(loras, ByRows) else loras.deltas
    content, style = deltas(layer.name)
    return score_layer(
        layer.name,
        content,
        style,
        top_k,
        measures,
        content_rank=layer.ranks[0],
        style_rank=layer.ranks[1],
        content_file=loras.names[0],
        style_file=loras.names[1],
        scratch=scratch,
    )
